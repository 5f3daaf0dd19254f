"""What type checkers and editors read is what the folders hold."""

import pytest

from linrec.stubs import PACKAGES, stub, stub_path


@pytest.mark.parametrize("package", PACKAGES)
def test_the_stub_is_current(package: str) -> None:
    there = stub_path(package).read_text(encoding="utf-8")
    assert there == stub(package), (
        f"run `make stubs`: {stub_path(package)} is not what the files of {package} give"
    )
