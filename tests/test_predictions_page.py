"""The page of label maps without truth: the most doubtful first."""

import re

import pytest
from typer.testing import CliRunner

from dkuxnet.cli.commands import app
from dkuxnet.core.classes_table import COLUMNS, lines
from dkuxnet.core.errors import UserError
from dkuxnet.report.predictions import write_predictions_report

ROWS = [
    ["good", "liver", "1", "9000", "1500.0", "0.97", "no", "0.950", "0.930", "0.965", "0.50", ""],
    ["fair", "liver", "1", "8000", "1300.0", "0.95", "no", "0.910", "0.880", "0.930", "0.60", ""],
    ["poor", "liver", "1", "50", "8.0", "0.55", "yes", "0.600", "0.400", "0.750", "0.90", ""],
    ["odd", "liver", "1", "9000", "1500.0", "0.99", "no", "", "", "", "3.10", "unlike <any> scan"],
    ["unsure", "liver", "1", "0", "0.0", "", "", "", "", "", "", ""],
]


def order(page: str) -> list[str]:
    return re.findall(r'<td class="name">(\w+)</td>', page)


def test_what_is_flagged_comes_first_then_the_lowest_dice_to_expect(tmp_path):
    (tmp_path / "classes.csv").write_text(lines([COLUMNS, *ROWS]))
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text()
    assert order(page) == ["odd", "poor", "unsure", "fair", "good"]
    assert "<b>2</b><span>of 5 scans to look at" in page and "unsure of liver" in page
    assert "unlike &lt;any&gt; scan" in page and "0.400 to 0.750" in page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("case;class\n", "was not written by `dkuxnet predict`; predict again"),
        (
            lines([COLUMNS, [*ROWS[0][:4], "much", *ROWS[0][5:]]]),
            "could not convert.*predict again",
        ),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path, text, said):
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        write_predictions_report(tmp_path)
