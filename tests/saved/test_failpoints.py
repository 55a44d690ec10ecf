"""A run that is killed before calls that change a file, one of each kind; `benchmarks.failpoints` tries all of them."""

from benchmarks import failpoints


def test_a_run_that_is_killed_before_any_kind_of_call_ends_as_the_undisturbed_one(tmp_path):
    operations = failpoints.copied("arrays", tmp_path, failpoints.compiled(tmp_path))
    assert operations.keys() >= {"open", "write", "fopen", "fwrite", "fsync", "rename", "unlink", "mkdir"}
    copies = {path.name: path for path in failpoints.distinct(tmp_path)}
    chosen, pruning = {}, None
    for line in (tmp_path / "log").read_text().splitlines():
        number, kind, name = line.split(" ", 2)
        if kind == "rename" and "/checkpoints/step_" in name:  # an old one, which is no more from here on
            pruning = copies[max((n for n in copies if n.isdigit() and int(n) <= int(number)), key=int)]
        phase = next((part for part in ("partial-step", "events.out", "metrics", "gone-step") if part in name), "other")
        for suffix in ("", ".half"):
            if number + suffix in copies:
                chosen[kind, phase, suffix] = copies[number + suffix]  # the last of its kind
    some = list(chosen.values())[:: max(1, len(chosen) // 12)]
    assert len(some) >= 12
    some.append(pruning)  # the last checkpoint was written, and the one that it replaces is there still
    expected = failpoints.found(failpoints.train("arrays", tmp_path / "undisturbed"))
    found = failpoints.killed("arrays", tmp_path, expected, some)
    assert found["wrong"] == {}
