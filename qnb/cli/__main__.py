"""`python -m qnb.cli` is `qnb`."""

import sys

from qnb.cli import main

sys.exit(main())
