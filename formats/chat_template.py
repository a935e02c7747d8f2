"""A model's chat template in its files: the text that says how a conversation with it is written.

It is a program, in Jinja, and never run here: chat.py recognises it by its marks. What is read is
written again as it was. Of several with names, the one called "default" counts.

Sources of the formats: transformers, tokenization_utils_base.py, `save_chat_templates`; ggml,
docs/gguf.md.
"""

from pathlib import Path
from typing import Any

from errors import FormatError
from files import replacing, without_surrogates
from formats.state_dict import load_json

LONGEST = 100_000  # characters; those of models with many tools have a fifth of it
FILE, OLDER_FILE = "chat_template.jinja", "tokenizer_config.json"


def checked(path: Path, template: Any) -> str:
    """A template that was found in a file; none is "".

    Raises:
        FormatError: it is no text, or longer than any.
    """
    if template is None:
        return ""
    if not isinstance(template, str) or len(template) > LONGEST:
        raise FormatError(
            f"{path} has a chat template that is no text, or has more than {LONGEST:,} characters; "
            "it is damaged, so get it anew"
        )
    return without_surrogates(template)


def read_folder(folder: Path) -> str:
    """The template in a folder of Hugging Face's; "" if it has none.

    As in transformers, a file of its own counts more than tokenizer_config.json.

    Raises:
        FormatError: a file is damaged.
    """
    if (path := folder / FILE).is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            return checked(path, file.read(LONGEST + 1))
    if not (path := folder / OLDER_FILE).is_file():
        return ""
    template = load_json(path).get("chat_template")
    if isinstance(template, list):
        named = [each for each in template if isinstance(each, dict)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    return checked(path, template)


def write_folder(folder: Path, template: str | None) -> None:
    """Write the file that transformers looks for, if there is a template.

    Raises:
        RunError: it cannot be written.
    """
    if template:
        with replacing(folder / FILE) as file:
            file.write(template.encode())
