"""Pushes published files as a dataset to the Hugging Face Hub."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from effbench.plugin.errors import InputError
from effbench.publish.card import card

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard

_ENDPOINT = "https://huggingface.co"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_NEEDED = ("leaderboard.parquet", "trials.parquet")
_PUSHED = (*_NEEDED, "LEADERBOARD.md", "index.html")
_STATUSES = {
    401: "the token is not valid: set HF_TOKEN to a token that may write, or log in again with `hf auth login`",
    403: "the token may not write there: it needs the right to write to that user or organisation",
    404: "there is no such user or organisation, or the token may not see it",
}


class Hub:
    """A dataset repository."""

    def __init__(self, repo: str, endpoint: str | None, *, private: bool) -> None:
        """InputError for an impossible name, and for an endpoint to which the token would travel in the clear."""
        if not _REPO.fullmatch(repo):
            raise InputError(f"--hub {repo}: expected ORG/NAME, for instance --hub my-name/effbench-results")
        self.repo, self.endpoint, self.private = repo, (endpoint or _ENDPOINT).rstrip("/"), private
        where = urlsplit(self.endpoint)
        if where.scheme != "https" and where.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise InputError(f"HF_ENDPOINT={self.endpoint}: must begin with https://, for the token travels to it")

    def push(self, files: Mapping[str, bytes], boards: "Sequence[Leaderboard]") -> str:
        """One commit of the card, the tables, the page and the plots; returns where it is.

        The token is the one that huggingface_hub finds: HF_TOKEN, or the saved login.
        """
        from huggingface_hub import CommitOperationAdd, HfApi, get_token
        from huggingface_hub import errors as hub_errors

        if any(name not in files for name in _NEEDED):
            raise InputError("--hub needs the format 'parquet': add --format parquet, or leave out --format")
        if not (token := get_token()):
            raise InputError("--hub: no token: set HF_TOKEN, or log in with `hf auth login`")
        pushed = {name: content for name, content in files.items() if name in _PUSHED or name.startswith("plots/")}
        pushed["README.md"] = card(boards, self.repo, _rows(files["trials.parquet"]), [*pushed]).encode()
        operations = [CommitOperationAdd(name, content) for name, content in sorted(pushed.items())]
        api = HfApi(endpoint=self.endpoint, token=token)
        # The HTTP client's own errors, under whichever name this version of huggingface_hub imports it.
        http_error: type[Exception] = hub_errors.HTTPError  # type: ignore[attr-defined]
        try:
            api.create_repo(self.repo, repo_type="dataset", private=self.private, exist_ok=True)
            done = api.create_commit(self.repo, operations, commit_message="Update the leaderboards", repo_type="dataset")
        except hub_errors.HfHubHTTPError as error:
            status = error.response.status_code
            raise InputError(f"--hub {self.repo}: {_STATUSES.get(status, f'the Hub answered with status {status}')}") from error
        except (http_error, OSError, RuntimeError, ValueError) as error:
            # Not the message: it could hold what was sent.
            raise InputError(f"--hub {self.repo}: cannot push to {self.endpoint} ({type(error).__name__})") from error
        return str(done.commit_url)


def _rows(parquet: bytes) -> int:
    from io import BytesIO

    import pyarrow.parquet as pq

    return int(pq.read_metadata(BytesIO(parquet)).num_rows)
