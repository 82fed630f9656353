"""`python -m rcg_lightning.cli` is the `rcg` command; torchrun starts it so."""

import sys

from rcg_lightning.cli.main import main

sys.exit(main())
