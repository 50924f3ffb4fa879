"""`python -m lumos` is the command `lumos`; `torchrun -m lumos` needs it."""

import sys

from lumos.cli.main import main

sys.exit(main())
