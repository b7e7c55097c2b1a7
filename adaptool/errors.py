"""What can go wrong, as one tree.

    AdaptoolError                     exit   what it means
    |-- UsageError                       2   the request itself makes no sense
    |-- CorruptInputError                3   a file is broken, or built to do harm
    |-- IncompatibleError                4   sound parts that do not fit, or cannot be expressed
    |-- VerificationError                5   the result was checked and found wrong
    |-- StorageError                     6   the disk said no: space, permission, exists
    |-- HubError                         7   the hub or the network said no
    `-- ResourceLimitError               8   larger than this program agrees to handle

Every error is one line for a person (what was found, where, what to do) and a
code for a program. Library calls raise them; only the command line prints and exits.
"""

from collections.abc import Mapping
from typing import ClassVar

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]


class AdaptoolError(Exception):
    """The root of everything this package raises on purpose.

    Args:
        message: what was found, what was expected, in which file and module.
        hint: what to do about it, as a sentence or a command.
        code: stable upper-case identifier for programs.
        details: further facts, JSON-ready.
    """

    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "ERROR"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        code: str | None = None,
        details: Mapping[str, JSON] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code
        self.details = dict(details or {})


class UsageError(AdaptoolError):
    """The request itself makes no sense: an option, a scale, an output that is an input."""

    exit_code = 2
    default_code = "USAGE"


class CorruptInputError(AdaptoolError):
    """A file is damaged, lies about itself, or reaches out of its folder."""

    exit_code = 3
    default_code = "INPUT_CORRUPT"


class IncompatibleError(AdaptoolError):
    """Sound inputs that do not fit each other, or that the target cannot express."""

    exit_code = 4
    default_code = "INCOMPATIBLE"


class VerificationError(AdaptoolError):
    """A result was checked against its definition and found wrong."""

    exit_code = 5
    default_code = "VERIFICATION_FAILED"


class StorageError(AdaptoolError):
    """The file system refused: no space, no permission, the output exists, another writer."""

    exit_code = 6
    default_code = "STORAGE"


class HubError(AdaptoolError):
    """The model hub or the network refused, or does not know the name."""

    exit_code = 7
    default_code = "HUB"


class ResourceLimitError(AdaptoolError):
    """A file is sound as far as was read, but larger than the stated limits."""

    exit_code = 8
    default_code = "RESOURCE_LIMIT"
