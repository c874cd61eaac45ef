"""``python -m wootz``: the command, for launchers such as torchrun."""

import sys

from wootz.cli import main

sys.exit(main())
