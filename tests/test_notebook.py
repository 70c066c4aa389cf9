"""lab/lab.ipynb runs from top to bottom, blank and with the solutions; what is stored in it are small pictures alone.

    python tests/test_notebook.py    # run it in full, 10 minutes, and store its pictures in it anew

LAB_SHORT=1 is the short setting. LAB_RUNS is the folder of what is trained.
"""

import base64
import inspect
import io
import json
import os
import re
import resource
import sys
import time
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lab"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "studies"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import exercises
import pictures
import solutions

import delta_logp

nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel, of requirements-extras.txt")
nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel, of requirements-extras.txt")
pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel, of requirements-extras.txt")

LAB = Path(solutions.__file__).parent
NOTEBOOK = LAB / "lab.ipynb"
PARTS = ("bandit", "objective", "training", "tokens", "claims")  # ids of the cells that begin a part


def stored():
    """The notebook as it lies in the repository."""
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(notebook, folder, short=True):
    """Run a notebook where Jupyter would, in lab/; its runs go below `folder`. A cell that fails raises."""
    environment = {**os.environ, "LAB_SHORT": "1" if short else "0", "LAB_RUNS": str(folder)}
    client = nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3")
    client.execute(cwd=str(LAB), env=environment)
    return notebook


def printed(notebook):
    """{id of a cell: what it printed}."""
    texts = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts[cell.id] = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    return texts


def pictures_of(notebook):
    """{id of a cell: its picture, bytes of a PNG file}."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                found[cell.id] = base64.b64decode(output.data["image/png"])
    return found


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    """(the notebook after a short run as it is shipped, the folder of its runs)."""
    folder = tmp_path_factory.mktemp("blank")
    return execute(stored(), folder), folder


# ------------------------------------------------------------------------------------------------------------ as stored
def test_it_is_a_valid_notebook_without_traces_of_a_machine():
    notebook = stored()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor >= 5) == (4, True)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert cell.metadata == {} and cell.get("execution_count") is None, cell.id
    assert not re.search(r"/(home|root|tmp|work|Users)/", NOTEBOOK.read_text())


def test_only_small_pictures_are_stored():
    drawn = []
    for cell in stored().cells:
        for output in cell.get("outputs", []):
            assert output.output_type == "display_data" and set(output.data) == {"image/png"}, cell.id
            assert output.metadata == {}
            drawn.append(cell.id)
    found = pictures_of(stored())
    assert drawn == list(found) and len(found) == 7  # one for each cell that draws
    for name, picture in found.items():
        assert len(picture) < 40_000, f"{name}: python tests/test_notebook.py stores smaller ones"
        assert 500 < Image.open(io.BytesIO(picture)).width < 1200


def test_each_part_has_a_question_a_prediction_what_to_see_and_an_exercise():
    cells = stored().cells
    starts = [i for i, cell in enumerate(cells) if cell.id in PARTS]
    assert [cells[i].id for i in starts] == list(PARTS)
    minutes = []
    for start, end in zip(starts, [*starts[1:], len(cells)], strict=True):
        text = "\n".join(cell.source for cell in cells[start:end] if cell.cell_type == "markdown")
        head = text.splitlines()[0]
        assert re.match(r"## \d\. .*\?", head)
        minutes.append(int(re.search(r"\((\d+) minutes\)", head)[1]))
        assert all(words in text for words in ("**Prediction.**", "What you should see", "**Exercise")), head
        assert text.count("<details>") == text.count("</details>")
    assert sum(minutes) == 90


def test_links_of_the_lab_lead_somewhere():
    texts = {"lab.ipynb": "\n".join(cell.source for cell in stored().cells if cell.cell_type == "markdown")}
    for page in sorted(LAB.glob("*.md")):
        texts[page.name] = page.read_text()
    assert len(texts) == 3
    for name, text in texts.items():
        for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text):
            page = LAB / target if target else LAB / name
            assert page.exists(), f"{name}: {target}"
            if anchor:
                heads = [head.lower() for head in re.findall(r"^#+ (.*)$", page.read_text(), re.M)]
                slugs = [re.sub(r"[^\w -]", "", head).replace(" ", "-") for head in heads]
                assert anchor in slugs, f"{name}: {target}#{anchor}"


# ------------------------------------------------------------------------------------------------------------- executed
def test_as_shipped_it_runs_to_its_end_and_says_what_is_not_written(blank):
    notebook, folder = blank
    texts = printed(notebook)
    for name, text in texts.items():
        if name.startswith("exercise-"):
            assert "not written yet\nUntil it is ok, later cells use the script's own function." in text, name
    assert "Traceback" not in "".join(texts.values())
    assert set(pictures_of(notebook)) == set(pictures_of(stored()))  # every cell that draws has a stored picture
    assert (folder / "dapo/model/model.safetensors").exists()
    assert "No flags yet" in texts["flags"] and "0 of 6 votes agree" in texts["verdicts"]


WRONG = {  # id of a cell: (a student's mistake, what the check says)
    "wrong": (
        "def negative_only(adv):\n    return adv.clamp(min=0.0)\n\n\nnegative_only = checked(3, negative_only)",
        "3 negative_only: You keep the positive advantages; the negative ones are wanted.\nUntil it is ok",
    ),
    "stops": (
        "def is_replaced(dlogp, threshold):\n    return dlogp.missing\n\n\nis_replaced = checked(7, is_replaced)",
        "(line 2: `return dlogp.missing`).\nUntil it is ok",
    ),
}


def test_with_the_solutions_every_check_says_ok_and_a_mistake_gets_its_sentence(tmp_path):
    notebook = stored()
    written = {}  # {id of a cell: name of its function}
    for cell in notebook.cells:
        blank_function = re.search(r'^def (\w+)\(.*\n    raise NotImplementedError\("exercise \d: \1"\)\n', cell.source)
        if blank_function:
            name = blank_function[1]
            assert str(inspect.signature(getattr(exercises, name))) in blank_function[0]
            cell.source = cell.source.replace(blank_function[0], inspect.getsource(getattr(solutions, name)))
            written[cell.id] = name
    assert list(written) == ["exercise-1", "exercise-2", "exercise-3", "exercise-4", "exercise-7"]
    slow = ("start", "watch", "flags", "replacement")  # none of them uses a function of the student's
    notebook.cells = [cell for cell in notebook.cells if cell.id not in slow]
    for name, (source, _) in WRONG.items():
        notebook.cells.append(nbformat.v4.new_code_cell(source, id=name))
    texts = printed(execute(notebook, tmp_path))
    for cell, name in written.items():
        assert texts[cell].startswith(f"{cell[-1]} {name}: ok\n") and "Until" not in texts[cell]
    for name, (_, sentence) in WRONG.items():
        assert sentence in texts[name]


def test_outside_the_repository_it_says_what_to_do(tmp_path):
    notebook = stored()
    notebook.cells = [cell for cell in notebook.cells if cell.id == "place"]
    client = nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="get the whole repository"):
        client.execute(cwd=str(tmp_path))


# --------------------------------------------------------------------------------------------------------------- slides
@pytest.mark.pictures
def test_slides_are_svg_with_text_as_text(tmp_path, monkeypatch):
    """Of a made-up training and two made-up responses."""
    rows = [{"step": 0}]
    for step in range(1, 11):
        rows.append({"step": step, "accuracy": step / 20, "guess": 11 - step, "two_at_once": 5, "one_at_a_time": step})
    delta_logp.write_jsonl(tmp_path / "metrics.jsonl", rows)
    tokenizer = delta_logp.load_tokenizer(str(LAB.parent / "tiny/rlvr"))
    texts = {"base": "34*2-5=63; 8+5*2=26 thus \\boxed{63,26}", "rlvr": "34*2=68; 68-5=63 so 8+5*2=26; \\boxed{63,26}"}
    responses = []
    owners = []
    for number, (source, text) in enumerate(texts.items()):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        owners += [number] * len(ids)
        row = {"prompt": "34*2-5,8+5*2?", "source": source, "right": source == "rlvr", "response": text}
        responses.append({**row, "response_ids": ids})
    delta_logp.write_jsonl(tmp_path / "responses.jsonl", responses)
    np.savez(tmp_path / "tokens.npz", response=owners, dlogp=np.linspace(-4, 4, len(owners)))
    (tmp_path / "config.json").write_text(json.dumps({"args": {"rlvr": str(LAB.parent / "tiny/rlvr")}}))

    words = f"pictures.py slides --tiny {tmp_path} --pair {tmp_path} --out {tmp_path / 'slides'}"
    monkeypatch.setattr(sys, "argv", words.split())
    pictures.main()
    for name, text in (
        ("bandit", "1. exploit"),
        ("two_stages", "one operation at a time"),
        ("dlogp", "RLVR made it less likely"),
        ("replacement", "replaced by dlogp"),
    ):
        root = xml.etree.ElementTree.parse(tmp_path / "slides" / f"{name}.svg").getroot()
        shown = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert any(text in words for words in shown), name
        width, height = (float(root.get(side).removesuffix("pt")) for side in ("width", "height"))
        assert width > 1.5 * height, name


# ---------------------------------------------------------------------------------------------- store the pictures anew
def small_png(data):
    """The same picture with 64 colours, a third as large."""
    picture = Image.open(io.BytesIO(data)).convert("RGB").quantize(64)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def main():
    """Run the notebook in full below runs/lab-full, and keep of its outputs the pictures alone."""
    started = time.time()
    notebook = execute(stored(), os.environ.get("LAB_RUNS", "runs/lab-full"), short=False)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.time() - started
    print(f"top to bottom: {seconds / 60:.1f} minutes, {(used.ru_utime + used.ru_stime) / 60:.1f} minutes of CPU time")
    found = pictures_of(notebook)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = []
            if cell.id in found:
                picture = base64.b64encode(small_png(found[cell.id])).decode()
                cell.outputs = [nbformat.v4.new_output("display_data", data={"image/png": picture})]
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
