"""Calls of the commands in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ssdcore_torch.commands import cli


def refusal(capsys: pytest.CaptureFixture[str], main: Callable[..., int], *options: object) -> str:
    """The one line on stderr of a call that must fail with status 2, having said nothing on stdout."""
    with pytest.raises(SystemExit) as caught:
        cli.run(main, [str(option) for option in options])
    captured = capsys.readouterr()
    assert caught.value.code == cli.BAD_INPUT
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err
