"""The order in which the test files begin."""

LONGEST = (
    "test_passes", "test_notebooks_in_lab", "test_own_pictures", "test_journey", "test_security",
    "test_train_resume", "test_cli_train", "test_training_questions", "test_bad_input", "test_qat",
    "test_package", "test_quantize", "test_export", "test_widgets", "test_book", "test_mixed_qat",
    "test_own_training_loop", "test_benchmarks", "test_train_ranks", "test_pruning_removal",
    "test_cli_quantize",
)  # fmt: skip
"""Files that begin first, in this order: one that began last would keep the other cores waiting."""


def longest_first(items):
    """Order the files in place; the tests of each stay in their order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(item.path.stem, len(LONGEST)), item.path))


def from_another_one_on(files, worker, workers):
    """The files in turned order: what one worker has compiled, the others read.

    In a fresh checkout all workers would otherwise compile the same file at the same time.
    """
    start = len(files) * worker // workers
    return files[start:] + files[:start]
