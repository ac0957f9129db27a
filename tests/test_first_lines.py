"""The lines that users write first, exactly as they were promised."""

import asyncio
import textwrap
from pathlib import Path

import numpy as np

from ai_model_optimizations import EmbeddingModel

FIRST_LINES = """
from ai_model_optimizations import ModelQuantizer, BatchEmbeddingProcessor, SmartCache
quantizer = ModelQuantizer()
optimized_model = quantizer.quantize_model(model)
processor = BatchEmbeddingProcessor(batch_size=32)
embeddings = await processor.process_batch(texts)
cache = SmartCache()
cached_result = cache.get_semantic_similar(query_embedding, threshold=0.85)
"""


def test_first_lines_run_as_written(minilm_path: Path) -> None:
    model = EmbeddingModel.load(dtype="f32")
    texts = ["How do I open an account?", "Where is my card?", "How do I open an account?"]
    names = {"model": model, "texts": texts, "query_embedding": model.encode(texts[0])}
    body = textwrap.indent(FIRST_LINES + "return locals()", "    ")
    source = f"async def first_lines():\n{body}"
    exec(source, names)
    result = asyncio.run(names["first_lines"]())  # type: ignore[operator]
    assert result["cached_result"] is None  # nothing was stored yet
    assert result["embeddings"].shape == (3, 384)
    assert result["embeddings"].dtype == np.float32
    expected = result["optimized_model"].encode(texts)
    np.testing.assert_array_equal(result["embeddings"], expected)
    result["cache"].put(names["query_embedding"], "In five minutes, online.")
    hit = result["cache"].get_semantic_similar(names["query_embedding"], threshold=0.85)
    assert hit.value == "In five minutes, online."
    result["processor"].close()
