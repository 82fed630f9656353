"""`python -m rcg_lightning.cli`: the `rcg` command, in the form that torchrun starts."""

import sys

from rcg_lightning.cli.main import main

sys.exit(main())
