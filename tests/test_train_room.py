"""`on_oom='accumulate'` in several processes: they agree on the parts, so that none waits for one
without memory."""

from helpers.train import FULL, Pure, equal, go, interruptible, log_of, together  # noqa: F401


def test_out_of_memory_in_one_process_of_two(tmp_path):
    """One has room for three samples at a time, the other for all: both go on in parts, the same
    update as in one process."""
    options = dict(on_oom="accumulate", **FULL)

    def job(rank):
        net = Pure(dropout=0)
        net.most = 99 if rank else 3
        go(tmp_path / "two", net=net, **options)

    assert together(job, tmp_path) == ["", ""]
    go(tmp_path / "one", net=Pure(dropout=0), **options)  # 16 samples, five at a time
    assert [r["parts"] for r in log_of(tmp_path / "two")] == [4] * len(log_of(tmp_path / "two"))
    equal(tmp_path / "one", tmp_path / "two")


def test_out_of_memory_even_with_one_ends_all(tmp_path):
    def job(rank):
        net = Pure(dropout=0)
        net.most = 99 * rank
        go(None, net=net, valid=None, on_oom="accumulate", steps=2)

    assert [s.split(":")[0] for s in together(job, tmp_path)] == ["BatchTooLarge"] * 2
