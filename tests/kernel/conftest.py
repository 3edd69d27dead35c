"""These tests load kernel modules and unplug devices: they run only inside the virtual machine of
`scripts/test-kernel`."""

import os

collect_ignore_glob = [] if os.environ.get("ULNA_KERNEL_GUEST") == "1" else ["test_*.py"]
