"""What ONNX Runtime raises while it runs is told in words, with what to do about it."""

import pytest

from blockwright.compile.runtime import ORT_ERRORS, RUNNING_ERRORS, refused

FAIL = next(each for each in ORT_ERRORS if each.__name__ == "Fail")


@pytest.mark.parametrize(
    "error",
    [
        FAIL("[ONNXRuntimeError] : 1 : FAIL : blockwright: out of memory"),
        FAIL("[ONNXRuntimeError] : 1 : FAIL : Non-zero status\nCUBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError("Failed to allocate memory for requested buffer of size 4096"),
        MemoryError("std::bad_alloc"),
        MemoryError(),
    ],
)
def test_where_memory_is_too_small_nothing_is_to_be_compiled_again(error: Exception) -> None:
    told = refused(error, "the engine", "a graph that runs", "cuda")
    assert "memory of cuda is too small" in told.remedy and "again" not in told.remedy
    assert told.got and "\n" not in str(told.got)


def test_anything_else_may_be_of_other_versions() -> None:
    told = refused(FAIL("blockwright: inputs whose sizes do not fit each other"), "the engine", "a graph", "cuda")
    assert "do not fit" in str(told.got) and "Compile the engine again" in told.remedy


def test_a_provider_that_fails_is_among_the_errors() -> None:
    assert {"EPFail", "Fail", "RuntimeException"} <= {each.__name__ for each in ORT_ERRORS}
    assert set(ORT_ERRORS) | {RuntimeError, MemoryError} == set(RUNNING_ERRORS)
