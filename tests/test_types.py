"""The README's Python, for a type checker. By its name this file is one of the last: `make lint`,
which runs beside the tests, has then looked at all that this needs.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_readme_s_python_satisfies_a_type_checker(tmp_path):
    """By the project's own settings, strict as they are, so that what was found is reused."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)[1]
    (tmp_path / "readme.py").write_text(code)
    settings = ["--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache"]
    command = [sys.executable, "-m", "mypy", *settings, "readme.py"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout
