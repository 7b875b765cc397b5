"""The package's description: README.md without pictures and links of the repository.

They lead nowhere on an index's page. All else stands in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

readme = Path(__file__).with_name("README.md").read_text("utf-8")
readme = re.sub(r"^!\[[^]]*]\((?!https:)[^)]*\)\n+", "", readme, flags=re.MULTILINE)
readme = re.sub(r"(?<!!)\[([^]]*)]\((?!https:)[^)]*\)", r"\1", readme)
setup(long_description=readme, long_description_content_type="text/markdown")
