"""What a template's process and its user agree on."""

from __future__ import annotations

import struct

LENGTH = struct.Struct("<Q")        # bytes of the JSON value behind it
MAX_SECS = 10.0                     # CPU time of one request
MAX_MEMORY_BYTES = 1 << 30          # address space of the process
MAX_CHARS = 1 << 24                 # of one rendering
