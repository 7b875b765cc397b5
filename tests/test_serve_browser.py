"""The page of `dkuxnet serve` in a real browser, on a real server."""

import base64
import io
import re
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

pytest.importorskip("fastapi")

from dkuxnet.data import formats
from dkuxnet.machine.files import checksum
from dkuxnet.prediction.predict import predict_scans
from serving import Server, serving, tiny_run, write_oblique, write_scan

WITHOUT_WEBGL = "HTMLCanvasElement.prototype.getContext = () => null"


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory) -> Path:
    return tiny_run(prepared, tmp_path_factory.mktemp("serve") / "run")


@pytest.fixture(scope="module")
def server(browser, run, tmp_path_factory):
    with serving(run, tmp_path_factory.mktemp("serve") / "temp", "--max-upload-mb", "2") as process:
        yield process


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    return write_scan(tmp_path_factory.mktemp("scan") / "Anna <b>1.nii.gz", 36)


@pytest.fixture
def page(browser, server):
    """The page, loaded; at the end, nothing has been complained of and nothing asked of another
    server.
    """
    page = browser.new_page(viewport={"width": 940, "height": 560})
    said, asked = [], []
    page.on(
        "console",
        lambda message: said.append(message.text) if message.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    page.close()
    assert not [
        text for text in said if "GPU stall" not in text and "Failed to load resource" not in text
    ], said
    assert all(url.startswith((server.url, "data:", "blob:")) for url in asked), asked


def open_page(page, server: Server):
    page.goto(server.url)
    page.get_by_text("The scan stays on this machine.").wait_for()
    return page


def drop(page, path: Path) -> None:
    """A drop as the browser tells of one, on the page's body."""
    data = page.evaluate_handle(
        """([name, content]) => {
          const data = new DataTransfer();
          const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
          data.items.add(new File([bytes], name));
          return data;
        }""",
        [path.name, base64.b64encode(path.read_bytes()).decode()],
    )
    for event in ("dragover", "drop"):
        page.dispatch_event("main", event, {"dataTransfer": data})


def pixels(page) -> np.ndarray:
    """The canvas as it is seen once it is at rest, (rows, columns, 3)."""
    import matplotlib.image

    before = None
    for _ in range(50):  # software drawing
        page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        if (taken := page.locator("#canvas").screenshot()) == before:
            break
        before = taken
    return matplotlib.image.imread(io.BytesIO(taken))[..., :3]


def coloured(picture: np.ndarray) -> int:
    """Pixels that are no grey."""
    return int((np.ptp(picture, axis=-1) > 0.08).sum())


def test_from_the_drop_to_the_download(page, server, run, scan, tmp_path):
    open_page(page, server)
    page.evaluate("""() => {  // every text that the progress line shows
        window.stages = [];
        new MutationObserver(() => window.stages.push(document.getElementById("stage").textContent))
            .observe(document.getElementById("stage"), { childList: true });
    }""")
    drop(page, scan)
    page.locator("#result").wait_for(timeout=60_000)
    stages = page.evaluate("window.stages")
    assert any(text.startswith("Sending the scan") for text in stages), stages
    assert any(text.startswith("Segmenting: window ") for text in stages), stages

    (written,) = predict_scans(run, [scan], tmp_path / "out", device="cpu")
    expected = formats.read(written, kind="label")
    rows = page.locator("#volumes tr").all_inner_texts()
    assert [row.split()[0] for row in rows] == ["organ", "tumour"] and all(
        re.search(r" ml\t(confidence 0\.\d\d)?\t?$", row) for row in rows
    )
    assert page.locator("#result-name").inner_text() == "Anna <b>1.nii.gz"
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the label map").click()
    assert download.value.suggested_filename == "Anna _b_1_segmentation.nii.gz"
    download.value.save_as(tmp_path / "got.nii.gz")
    assert np.array_equal(formats.read(tmp_path / "got.nii.gz", kind="label").array, expected.array)

    shown = pixels(page)
    assert shown.std() > 0.05 and coloured(shown) > 500
    page.get_by_role("checkbox", name="Segmentation").uncheck()
    grey = pixels(page)
    assert coloured(grey) < 50 and grey.std() > 0.05  # the scan stays
    page.get_by_role("checkbox", name="Uncertainty").check()
    assert coloured(pixels(page)) > 500  # a network that has learnt nothing is unsure everywhere
    page.get_by_label("Opacity of the uncertainty").fill("0")
    assert coloured(pixels(page)) < 50
    page.get_by_role("checkbox", name="Segmentation").check()
    assert coloured(pixels(page)) > 500
    before = pixels(page)
    page.locator("#canvas").focus()
    for _ in range(6):
        page.keyboard.press("PageUp")
    assert np.abs(pixels(page) - before).max() > 0.3
    page.get_by_label("View").select_option("3D")
    assert np.abs(pixels(page) - before).max() > 0.3

    page.get_by_label("View").select_option("Axial")
    filled = np.ptp(pixels(page), axis=-1) > 0.08
    page.get_by_role("checkbox", name="Outlines").check()
    outlined = np.ptp(pixels(page), axis=-1) > 0.08
    assert outlined.sum() > 50 and (filled & ~outlined).sum() > 50  # grey inside
    found = page.evaluate("""async () => {
        const { colours } = await import("/static/viewer.js");
        return Array.from({ length: 255 }, (_, i) => colours(i + 1).join());
    }""")
    assert len(set(found)) == 255

    page.get_by_role("button", name="Next scan").click()
    page.get_by_role("heading", name="Drop a scan here").wait_for()
    assert page.evaluate("document.activeElement.id") == "file"
    until_no_files(server)


def test_by_keyboard_and_without_webgl(browser, page, server, scan, tmp_path):
    """The file is chosen; where nothing can be drawn the volumes and the download are there all
    the same.
    """
    page.add_init_script(WITHOUT_WEBGL)
    open_page(page, server)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.set_input_files("#file", scan)
    page.get_by_text("This browser cannot draw the scan").wait_for(timeout=60_000)
    assert page.locator("#volumes tr").count() == 2 and not page.locator("#canvas").is_visible()
    assert page.evaluate("document.activeElement.id") == "result-title"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "download"
    page.goto("about:blank")
    until_no_files(server)  # a closed page takes its scan along


def test_errors_are_told_on_the_page(page, server, tmp_path):
    open_page(page, server)
    broken = {"name": "broken.nii", "mimeType": "", "buffer": b"hello" * 99}
    for file, said in (
        (broken, "Expected NIfTI by its name, but it holds text; rename or convert it."),
        (broken | {"name": "photo.png"}, "The page takes files that end with .nii.gz"),
        (
            broken | {"name": "big.nii", "buffer": bytes(3 * 2**20)},
            "this server takes 2 MB at most",
        ),
    ):
        page.set_input_files("#file", file)
        page.get_by_role("alert").get_by_text(said).wait_for(timeout=60_000)
        page.get_by_role("button", name="Choose another scan").click()
        page.get_by_role("heading", name="Drop a scan here").wait_for()


def test_the_files_of_a_series_dropped_one_by_one_are_not_taken_for_its_first(
    page, server, tmp_path
):
    open_page(page, server)
    data = page.evaluate_handle("""() => {
        const data = new DataTransfer();
        for (const name of ["1.dcm", "2.dcm", "3.dcm"]) data.items.add(new File(["x"], name));
        return data;
    }""")
    page.dispatch_event("main", "drop", {"dataTransfer": data})
    page.get_by_role("alert").get_by_text(
        "These are 3 files, and the page takes one. Zip the files"
    ).wait_for(timeout=10_000)
    assert not server.files()


def test_a_scan_can_be_cancelled(page, server, tmp_path):
    open_page(page, server)
    page.set_input_files("#file", write_scan(tmp_path / "big.nii.gz", 56))
    page.locator("#stage", has_text="window").wait_for(timeout=60_000)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("heading", name="Drop a scan here").wait_for()
    until_no_files(server)
    assert page.locator("#choose").is_visible()


def bright(page) -> np.ndarray:
    """Where the canvas is white in a large area, (n, 2) as x, y of it: the box, no cross."""
    white = ndimage.binary_erosion(pixels(page).min(axis=-1) > 0.9, iterations=6)
    return np.argwhere(white)[:, ::-1]


def test_what_is_drawn_is_saved_where_it_was_seen(browser, run, tmp_path):
    """On an oblique scan, with mouse and keyboard; the box of `write_oblique` says where."""
    folder = tmp_path / "folder"
    (folder / "labels").mkdir(parents=True)
    scan = formats.read(write_oblique(folder / "anna.nii.gz"))
    inside = scan.array > 900
    page = browser.new_page(viewport={"width": 940, "height": 640})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    with serving(run, tmp_path / "temp", "--label-folder", str(folder)) as server:
        page.goto(server.url)
        page.get_by_role("button", name="Label anna").click()
        page.get_by_label("Begin with").select_option("empty")
        page.get_by_role("checkbox", name="The model’s map").uncheck()
        page.get_by_label("Size of pen").fill("1")
        places = bright(page)
        canvas = page.locator("#canvas").bounding_box()
        corner = np.array([canvas["x"], canvas["y"]])
        # of the axial plane, the large one
        middle = corner + places[places[:, 0] < 0.6 * canvas["width"]].mean(axis=0)
        page.keyboard.press("1")
        page.keyboard.press("o")
        x, y = middle.tolist()
        page.mouse.move(x - 30, y)
        page.mouse.down()
        for right, down in ((0, -30), (30, 0), (0, 30), (-30, 0)):
            page.mouse.move(x + right, y + down, steps=3)
        page.mouse.up()
        page.keyboard.press("e")
        page.mouse.click(x, y)
        page.keyboard.press("Control+z")
        page.keyboard.press("p")
        page.keyboard.press("2")
        ways = ([1, 1], [-1, 1], [1, -1], [-1, -1])  # they lead to more than one of the planes
        for right, down in [(corner + places[np.argmin(places @ way)]).tolist() for way in ways]:
            page.mouse.click(right, down)
        page.get_by_label("Your name").fill("Ada")
        page.get_by_role("button", name="Save the label").click()
        page.get_by_text("Saved as labels/anna.nii.gz.").wait_for(timeout=20_000)
        label = formats.read(folder / "labels/anna.nii.gz", kind="label")
        assert np.array_equal(label.affine, scan.affine)
        assert not label.array[~inside].any()
        assert np.count_nonzero(label.array == 2) == 4
        (slices,) = np.nonzero((label.array == 1).any(axis=(0, 2)))  # axial ones, in this scan
        assert len(slices) == 1
        ring = label.array[:, slices[0]] > 0
        assert ring.sum() > 12 and np.array_equal(ring, ndimage.binary_fill_holes(ring))

        page.reload()
        page.get_by_role("button", name="label by Ada").click()
        page.get_by_role("checkbox", name="The model’s map").uncheck()
        assert page.get_by_label("Begin with").input_value() == "label"
        assert coloured(pixels(page)) > 20
        before = checksum(folder / "labels/anna.nii.gz")
        page.keyboard.press("f")
        page.keyboard.press("2")
        page.mouse.click(x, y)
        page.keyboard.press("Control+s")
        page.get_by_text("anna has a label that Ada saved").wait_for(timeout=20_000)
        page.get_by_role("button", name="Keep it").click()
        assert checksum(folder / "labels/anna.nii.gz") == before
        page.get_by_role("button", name="Save the label").click()
        page.get_by_role("button", name="Replace it").click()
        page.get_by_text("Saved as labels/anna.nii.gz.").wait_for(timeout=20_000)
        filled = formats.read(folder / "labels/anna.nii.gz", kind="label").array
        assert np.array_equal(filled == 2, label.array > 0)
        page.get_by_role("button", name="Next scan").click()
        page.get_by_text("Every other scan has a label.").wait_for()
    page.close()
    assert wrong == []


def until_no_files(server: Server) -> None:
    until = time.monotonic() + 30
    while server.files():
        assert time.monotonic() < until, server.files()
        time.sleep(0.05)
