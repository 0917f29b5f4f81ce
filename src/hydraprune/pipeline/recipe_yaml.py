"""The file of a recipe as keys and values, before anything is known of what they mean."""

from pathlib import Path
from typing import Any

import yaml

from hydraprune import io
from hydraprune.errors import UserError
from hydraprune.paths import RunPaths


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice; YAML itself keeps the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key '{key.value}' comes twice")
            seen.add(key.value)
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """Return what the file holds; `UserError` in one line for a file that is no recipe."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"no such recipe: '{path}'{io.nearest(path)}") from None
    except IsADirectoryError:
        raise UserError(_of_folder(path)) from None
    except OSError as error:
        raise UserError(f"cannot read recipe '{path}': {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not a recipe: byte {error.start + 1} is not text in UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not YAML: {_mistake(error)}") from None
    if value is None:
        raise UserError(
            f"'{path}' is empty: a recipe has keys, such as `name: mine`; "
            "`hydraprune run` without a recipe runs the default"
        )
    if not isinstance(value, dict):
        holds = "a list" if isinstance(value, list) else "a single value"
        raise UserError(f"'{path}' is not a recipe: it holds {holds}, not keys and values such as `name: mine`")
    return value


def _of_folder(path: Path) -> str:
    written = RunPaths(path).recipe
    if written.exists():
        return f"'{path}' is a folder, not a recipe; that of the run in it is '{written}'"
    return f"'{path}' is a folder, not a recipe; give a YAML file"


def _mistake(error: Exception) -> str:
    """Return what YAML says of its text: the line and the column first, no excerpt with a mark below it."""
    if isinstance(error, RecursionError):
        return "its values are nested too deeply"
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1} is not one of text"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        problem = error.problem.replace("'<stream end>'", "the end of the file")
        problem = problem.replace("end of stream", "end of the file").replace("<block end>", "the end of the block")
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {problem}"
    return " ".join(str(error).split())
