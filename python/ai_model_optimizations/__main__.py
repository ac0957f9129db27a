"""``python -m ai_model_optimizations``."""

import sys

from .cli import main

sys.exit(main())
