"""``python -m opd`` is the command ``opd``."""

import sys

from opd.cli import main

sys.exit(main())
