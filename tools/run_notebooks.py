"""Execute notebooks and keep their outputs as a person would see them.

    python tools/run_notebooks.py notebooks/*.ipynb

Progress bars are kept as their last line, warnings about the environment are dropped.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(path: Path) -> None:
    """Execute one notebook in place."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = tidied(cell.outputs)
    nbformat.write(notebook, path)


def tidied(outputs: list) -> list:
    """Return outputs with consecutive streams joined and overwritten lines gone."""
    joined: list = []
    for output in outputs:
        if output.output_type != "stream":
            joined.append(output)
        elif joined and joined[-1].output_type == "stream" and joined[-1].name == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    for output in joined:
        if output.output_type == "stream":
            text = re.sub(r".*TqdmWarning: IProgress not found.*\n.*\n", "", output.text)  # of this machine's Jupyter
            output.text = "\n".join(line.split("\r")[-1] for line in re.split(r"\r?\n", text))
    return [output for output in joined if output.output_type != "stream" or output.text.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    for path in parser.parse_args().notebooks:
        run(path)
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
