"""`python -m dvt_timm`, which `accelerate launch -m dvt_timm` runs too."""

import sys

from .cli.main import main

sys.exit(main())
