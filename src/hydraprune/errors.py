"""The errors that hydraprune raises on purpose, and the exit code that each one becomes."""

from collections.abc import Sequence


class HydrapruneError(Exception):
    """Base of every error raised on purpose. The command line prints its message and exits with `exit_code`.

    Attributes:
        quiet: another process of the same run prints it.
    """

    exit_code = 1
    quiet = False


class UserError(HydrapruneError):
    """Something the user can mend: the message is one line that says what came and what would work."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe with one or more mistakes; all of them are in `complaints`, so that one run shows them all."""

    def __init__(self, source: str, complaints: Sequence[str]) -> None:
        self.source = source
        self.complaints = tuple(complaints)
        if len(self.complaints) == 1:
            super().__init__(f"{source}: {self.complaints[0]}")
        else:
            listed = "\n".join(f"  - {complaint}" for complaint in self.complaints)
            super().__init__(f"{source}: {len(self.complaints)} mistakes\n{listed}")


class DataError(UserError):
    """A data set that is missing, truncated, of the wrong shape or not what its checksum says."""


class Interrupted(HydrapruneError):
    """A signal asked the run to stop; its state is saved and the same command goes on from there."""

    exit_code = 75
