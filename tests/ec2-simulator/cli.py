"""The AWS CLI, for one command after the other: most of what a start costs is its modules.

Each line of standard input is the words of a command, as a JSON list. Each is answered with a
line of JSON: how the command ended, and what it wrote to standard output and standard error.
"""

import contextlib
import io
import json
import sys

from awscli.clidriver import create_clidriver

for line in sys.stdin:
    written, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(said):
        try:
            # A driver of its own for each: what one has added to its arguments stays.
            code = create_clidriver().main(json.loads(line))
        except SystemExit as end:
            code = end.code
    ended = {"code": code or 0, "written": written.getvalue(), "said": said.getvalue()}
    print(json.dumps(ended), flush=True)
