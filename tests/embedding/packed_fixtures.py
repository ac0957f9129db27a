"""Writes the packed models under tests/data: one tiny file for each layout version and dtype.

    python tests/embedding/packed_fixtures.py

A file of an older version is never written again: it stands for what users have on disk.
"""

import sys
import tempfile
from pathlib import Path

from model_folders import BertFolder

from ai_model_optimizations import EmbeddingModel, _core

DATA = Path(__file__).parent.parent / "data"
FOLDER = BertFolder(
    hidden=32, heads=2, layers=1, intermediate=40, positions=24, max_seq_length=20, seed=7
)
TEXT = "read the file"


def main() -> int:
    """Write the files of the current layout version that do not exist."""
    with tempfile.TemporaryDirectory() as work:
        source = FOLDER.write(Path(work) / "source")
        for dtype in ("f16", "bf16"):
            file = DATA / f"packed_v{_core.encoder_layout_version()}_{dtype}.safetensors"
            if not file.exists():
                model = EmbeddingModel.load(source, dtype=dtype)
                model.save(Path(work) / dtype).rename(file)
                print(file, file.stat().st_size, model.encode(TEXT)[:6].tolist())
    return 0


if __name__ == "__main__":
    sys.exit(main())
