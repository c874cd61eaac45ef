"""Any module as a child process on the leash (`wootz.core.leash`): it ends when the supervisor ends, however that goes.

python -m wootz.app.leash MODULE ARGUMENTS…      # runs MODULE as `python -m MODULE` would, on the leash
"""

from __future__ import annotations

import runpy
import sys

from wootz.core.leash import hold

if __name__ == "__main__":
    hold()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
