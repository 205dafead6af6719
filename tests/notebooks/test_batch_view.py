"""The live view of a Batch, as a front end sees it: what a real kernel publishes, and when."""

from __future__ import annotations

import pytest

from tests.notebooks.kernel import WIDGET, Kernel, Message, times


def outputs(messages: list[Message], kind: str = "display_data") -> list[Message]:
    return [message["content"] for message in messages if message["msg_type"] == kind]


def test_the_first_output_has_widget_html_and_text(kernel: Kernel) -> None:
    [output] = outputs(kernel.run("batch = FakeBatch(200)\nbatch"))
    assert set(output["data"]) == {WIDGET, "text/html", "text/plain"}
    assert output["transient"]["display_id"]
    assert "0 of 200" in output["data"]["text/plain"]
    assert "0 of 200" in output["data"]["text/html"]
    state = next(m for m in kernel.heard if m["content"].get("comm_id") == kernel.widget())["content"]["data"]["state"]
    assert state["snapshot"]["total"] == 200
    assert [row[0] for row in state["snapshot"]["rows"]] == list(range(8))
    kernel.run("batch.finish()")


def test_at_the_end_the_output_is_html_and_text_and_the_widget_is_gone(kernel: Kernel) -> None:
    [output] = outputs(kernel.run("batch = FakeBatch(200).play(0.5); batch"))
    update = kernel.until(lambda m: m["msg_type"] == "update_display_data")["content"]
    assert update["transient"] == output["transient"]
    assert set(update["data"]) == {"text/html", "text/plain"}
    assert "200 calls" in update["data"]["text/plain"]
    assert "<script" not in update["data"]["text/html"]
    closed = [m for m in kernel.listen(3.0) if m["msg_type"] == "comm_close"]
    opened = [m for m in kernel.heard if m["msg_type"] == "comm_open"]
    assert {m["content"]["comm_id"] for m in closed} >= {m["content"]["comm_id"] for m in opened}


def test_the_last_the_view_hears_is_the_whole_final_state(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(30, failing=1).play(0.3); batch")
    kernel.until(lambda m: m["msg_type"] == "update_display_data")
    states = [m["content"]["data"].get("state", {}) for m in kernel.heard if m["msg_type"] == "comm_msg"]
    [final] = [state["snapshot"] for state in states if "snapshot" in state]
    assert (final["kind"], final["over"], final["counts"][5]) == ("snapshot", True, 30)
    assert final["failures"][0][:2] == ["ValueError", 26]
    assert final["seq"] > max(message["seq"] for message in kernel.said("delta"))


def test_at_most_ten_messages_a_second(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(3000).play(2.5); batch")
    kernel.until(lambda m: m["msg_type"] == "update_display_data")
    sent = times([m for m in kernel.heard if m["msg_type"] == "comm_msg"])
    assert len(sent) > 10
    most = max(sum(begin <= moment < begin + 1 for moment in sent) for begin in sent)
    assert most <= 10 + 1  # the final state may follow a delta at once


def test_numbers_have_no_gap_and_rows_are_sent_once(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(300).play(1.5); batch")
    kernel.until(lambda m: m["msg_type"] == "update_display_data")
    deltas = kernel.said("delta")
    assert [message["seq"] for message in deltas] == list(range(1, len(deltas) + 1))
    known: set[int] = set(range(8))
    ended: list[int] = []
    for message in deltas:
        known |= {row[0] for row in message["rows"]}
        ended += [row[0] for row in message["rows"] if row[1] == 4]
        assert set(message["order"]) <= known
        assert message["order"] == sorted(message["order"])
    assert len(ended) == len(set(ended))


def test_the_kernel_goes_on(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(50_000).play(2, step=50); batch")
    asked = kernel.run("begun = time.perf_counter(); sum(range(1000)); print(time.perf_counter() - begun)")
    first, last = times([asked[0], asked[-1]])
    assert last - first < 0.5
    kernel.until(lambda m: m["msg_type"] == "update_display_data")


def test_a_cell_that_blocks_is_drawn_meanwhile(kernel: Kernel) -> None:
    shown = kernel.run("batch = FakeBatch(300).play(1); display(batch); time.sleep(1.5)")
    assert len(kernel.said("delta", shown)) >= 5
    assert outputs(shown, "update_display_data")


def test_ten_thousand_updates_cost_little(kernel: Kernel) -> None:
    kernel.run("import qnb.notebook.stage as stage\nbatch = FakeBatch(10_001, failing=0.1); batch")
    code = """
clock = time.pthread_getcpuclockid(stage.STAGE._thread.ident)
before, begun = time.clock_gettime(clock), time.perf_counter()
for index in range(10_000):
    batch.move([index], "failed" if index % 10 == 0 else "done")
    while time.perf_counter() - begun < index / 10_000:
        pass
cost = time.clock_gettime(clock) - before
"""
    kernel.run(code)
    assert kernel.value("cost") < 0.030
    kernel.run("batch.finish()")


def test_nothing_is_drawn_while_nothing_changes(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(10); batch")
    kernel.listen(0.5)
    quiet = kernel.listen(5)
    assert [message["kind"] for message in kernel.said(messages=quiet)] == ["beat", "beat"]
    assert not kernel.said("delta", quiet)
    kernel.run("batch.finish()")


def test_ready_and_resync_are_answered_with_everything(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(10); batch")
    for message in ({"kind": "ready", "view": "a"}, {"kind": "resync"}):
        kernel.send(kernel.widget(), message)
        answer = kernel.until(lambda m: bool(kernel.said("snapshot", [m])))
        assert kernel.said("snapshot", [answer])[0]["total"] == 10
    kernel.run("batch.finish()")


def test_hidden_and_closed_views_are_sent_nothing(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(10_000).play(30); batch")
    comm = kernel.widget()
    for kind in ("ready", "hidden"):
        kernel.send(comm, {"kind": kind, "view": "a"})
    kernel.listen(0.5)
    assert not kernel.said(messages=kernel.listen(2.5))
    kernel.send(comm, {"kind": "shown", "view": "a"})
    kernel.until(lambda m: bool(kernel.said("snapshot", [m])))
    kernel.send(comm, {"kind": "gone", "view": "a"})
    kernel.listen(0.5)
    assert not kernel.said(messages=kernel.listen(2.5))
    kernel.run("batch.finish()")
    assert [m for m in kernel.heard if m["msg_type"] == "update_display_data"]


def test_a_message_of_a_view_is_no_cell(kernel: Kernel) -> None:
    """It may come on another thread while a cell draws figures: matplotlib shows and closes them after each cell."""
    kernel.run("ends = []\nget_ipython().events.register('post_execute', lambda: ends.append(1))")
    kernel.run("batch = FakeBatch(10); batch")
    for kind in ("ready", "hidden", "shown"):
        kernel.send(kernel.widget(), {"kind": kind, "view": "a"})
    kernel.until(lambda m: bool(kernel.said("snapshot", [m])))
    kernel.listen(0.3)
    assert kernel.value("len(ends)") == 2
    kernel.run("batch.finish()")


def test_the_word_of_a_view_that_was_overtaken_counts_no_more(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(10_000).play(30); batch")
    kernel.send(kernel.widget(), {"kind": "hidden", "view": "a", "n": 1})
    kernel.send(kernel.widget(), {"kind": "ready", "view": "a", "n": 0})
    kernel.listen(0.5)
    assert not kernel.said(messages=kernel.listen(1))
    kernel.run("batch.finish()")


def test_cancel_is_acknowledged_and_done(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(50).play(60); batch")
    kernel.send(kernel.widget(), {"kind": "cancel", "id": "7"})
    kernel.until(lambda m: {"kind": "ack", "id": "7"} in kernel.said(messages=[m]), 1.5)
    kernel.listen(0.3)
    assert kernel.value("(batch.cancels, batch.counts['cancelled'])") == (1, 49)
    kernel.run("batch.finish()")


def test_showing_twice_is_one_widget_and_two_outputs(kernel: Kernel) -> None:
    shown = outputs(kernel.run("batch = FakeBatch(10); display(batch, batch)"))
    assert len({output["data"][WIDGET]["model_id"] for output in shown}) == 1
    kernel.run("batch.finish()")
    updated = outputs(kernel.heard, "update_display_data")
    assert [output["transient"] for output in updated] == [output["transient"] for output in shown]


def test_a_batch_that_is_over_is_shown_without_a_widget(kernel: Kernel) -> None:
    [output] = outputs(kernel.run("batch = FakeBatch(10); batch.finish(); batch"))
    assert set(output["data"]) == {"text/html", "text/plain"}
    assert not [m for m in kernel.heard if m["msg_type"] == "comm_open"]


def test_a_cell_that_waits_ends_with_its_final_output(kernel: Kernel) -> None:
    """Who runs notebooks without a browser stops listening at the end of the last cell."""
    shown = kernel.run("batch = FakeBatch(30).play(0.4); display(batch)\nwhile not batch.over: time.sleep(0.001)")
    assert "30 calls" in outputs(shown, "update_display_data")[0]["data"]["text/plain"]


def test_capture_in_another_cell_swallows_nothing(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(30).play(0.4); batch")
    shown = kernel.run("%%capture captured\ntime.sleep(1)")
    assert outputs(shown, "update_display_data")
    assert kernel.value("len(captured.outputs)") == 0


@pytest.mark.slow
def test_two_hundred_cells_leave_nothing_behind(kernel: Kernel) -> None:
    counts = "from comm import get_comm_manager\nimport gc, ipywidgets\n"
    kernel.run(counts + "def count(): return len(get_comm_manager().comms), threading.active_count()")
    kernel.listen(3)
    before = kernel.value("count()")
    for _ in range(200):
        kernel.run("batch = FakeBatch(4); batch")
        kernel.run("batch.finish()")
        kernel.heard.clear()
    kernel.listen(3)
    comms, threads = kernel.value("count()")
    assert (comms, threads) <= before
    assert kernel.value("batch.listeners") == 0
    kernel.run("from qnb.notebook.batch_view import BatchView, STAGE\nfrom ipywidgets import Widget")
    assert kernel.value("(STAGE.views(), len(ipywidgets.widgets.widget._instances))") == ([], 0)


def test_a_kernel_that_ends_leaves_the_last_state(fresh_kernel: Kernel) -> None:
    [output] = outputs(fresh_kernel.run("batch = FakeBatch(100).play(60); batch"))
    fresh_kernel.client.shutdown()
    update = fresh_kernel.until(lambda m: m["msg_type"] == "update_display_data")["content"]
    assert update["transient"] == output["transient"]
    assert set(update["data"]) == {"text/html", "text/plain"}
    assert "of 100" in update["data"]["text/plain"]


def test_a_batch_whose_views_fail_does_not_hurt_the_others(fresh_kernel: Kernel) -> None:
    fresh_kernel.run("good, bad = FakeBatch(10), FakeBatch(10)\ndisplay(bad, good)")
    fresh_kernel.run("bad.rows = None; bad.move([0], 'running')")
    fresh_kernel.listen(0.5)
    fresh_kernel.heard.clear()
    fresh_kernel.run("good.move([0], 'running')")
    fresh_kernel.listen(0.5)
    assert fresh_kernel.said("delta")
