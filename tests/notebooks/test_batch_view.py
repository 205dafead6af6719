"""The live view of a Batch, as a front end sees it: what a real kernel publishes, and when."""

from __future__ import annotations

import array

import pytest

from tests.notebooks.kernel import WIDGET, Kernel, Message, rows, times

COUNT = """
import gc, ipywidgets
from comm import get_comm_manager

def settle(ready, seconds=10):
    end = time.monotonic() + seconds
    while not ready() and time.monotonic() < end:
        time.sleep(0.01)

def count():
    gc.collect()
    views = sum(isinstance(one, live.LiveView) for one in gc.get_objects())
    models = len(ipywidgets.widgets.widget._instances)
    return len(get_comm_manager().comms), threading.active_count(), models, views
"""


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
    assert f"qnb-live-{state['key']}" in output["data"]["text/html"]
    kernel.run("batch.finish()")


def test_a_view_that_is_ready_is_told_everything(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(200); batch.move(range(50), 'done'); batch.move([50], 'failed'); batch")
    answer = kernel.ready()
    table = rows(answer)
    assert [table[index][0] for index in (0, 50, 51)] == [4, 5, 1]
    part = answer["content"]["data"]["content"]["rows"]
    assert part["parameters"] == [["seed", True], ["density", True], ["side", False]]
    assert array.array("d", bytes(answer["buffers"][6]))[:3].tolist() == pytest.approx([0.4, 0.41, 0.42])
    told = part["texts"]
    texts = {(place, index): text for place, indices, said in told for index, text in zip(indices, said, strict=True)}
    assert (texts[2, 0], texts[2, 1]) == ("'left'", "'right'")
    assert texts[-1, 50] == "ValueError: seed must be positive, got -3"
    assert texts[-1, 1].startswith("{'crossed': False, ")
    kernel.run("batch.finish()")


def test_a_page_of_jupyter_has_html_in_its_outputs_from_then_on(kernel: Kernel) -> None:
    """Whatever is saved then, and whenever, needs no kernel and no widget."""
    [output] = outputs(kernel.run("batch = FakeBatch(200); batch"))
    kernel.send(kernel.widget(), {"kind": "ready", "view": "a", "n": 0})
    kernel.send(kernel.widget(), {"kind": "placed"})
    update = kernel.until(lambda m: m["msg_type"] == "update_display_data")["content"]
    assert update["transient"] == output["transient"]
    assert set(update["data"]) == {"text/html", "text/plain"}
    assert "qnb-live-" in update["data"]["text/html"]
    kernel.run("batch.finish()")


def test_at_the_end_the_output_is_html_and_text(kernel: Kernel) -> None:
    [output] = outputs(kernel.run("batch = FakeBatch(200).play(0.5); batch"))
    update = kernel.until(lambda m: m["msg_type"] == "update_display_data")["content"]
    assert update["transient"] == output["transient"]
    assert set(update["data"]) == {"text/html", "text/plain"}
    assert "200 calls" in update["data"]["text/plain"]
    assert "<script" not in update["data"]["text/html"]


def test_a_widget_that_nobody_looks_at_goes_when_all_is_over(hasty_kernel: Kernel) -> None:
    kernel = hasty_kernel
    kernel.run("batch = FakeBatch(20).play(0.1); batch")
    opened = {m["content"]["comm_id"] for m in kernel.heard if m["msg_type"] == "comm_open"}
    while opened:
        opened.discard(kernel.until(lambda m: m["msg_type"] == "comm_close")["content"]["comm_id"])
    assert kernel.value("batch.listeners") == 0


def test_a_view_that_is_looked_at_stays_when_all_is_over(hasty_kernel: Kernel) -> None:
    """Its rows can still be opened."""
    kernel = hasty_kernel
    kernel.run("batch = FakeBatch(20, failing=1).play(0.1); batch")
    kernel.ready()
    assert not [m for m in kernel.listen(1.5) if m["msg_type"] == "comm_close"]
    detail = kernel.ask("example", kind="ValueError")
    assert detail["arguments"] == [["seed", "0"], ["density", "0.4"], ["side", "'left'"]]
    assert "line 4, in simulate" in detail["traceback"]
    assert (detail["state"], detail["worker"], len(detail["times"])) == ("failed", "here-0", 3)
    kernel.send(kernel.widget(), {"kind": "gone", "view": "a", "n": 1})
    kernel.until(lambda m: m["msg_type"] == "comm_close", 7)


def test_the_last_the_view_hears_is_the_end(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(30, failing=1); batch")
    kernel.ready()
    kernel.run("batch.play(0.5); None")
    last = kernel.until(lambda m: any(said.get("over") for said in kernel.said("delta", [m])))
    final = kernel.said("delta", [last])[0]
    assert final["counts"][5] == 30
    known = {index: row for m in kernel.heard if kernel.said(messages=[m]) for index, row in rows(m).items()}
    assert {row[0] for row in known.values()} == {5}
    groups = [said["failures"] for said in kernel.said("delta") if "failures" in said] + [final.get("failures")]
    assert ["ValueError", 26, "seed must be positive, got -3"] in [group for some in groups if some for group in some]


def test_at_most_ten_messages_a_second(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(3000).play(2.5); batch")
    kernel.until(lambda m: m["msg_type"] == "update_display_data")
    sent = times([m for m in kernel.heard if m["msg_type"] == "comm_msg"])
    assert len(sent) > 10
    most = max(sum(begin <= moment < begin + 1 for moment in sent) for begin in sent)
    assert most <= 10 + 1  # the final state may follow a delta at once


def test_numbers_have_no_gap_and_rows_are_sent_once(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(300); batch")
    kernel.ready()
    kernel.run("batch.play(1.5); None")
    kernel.until(lambda m: any(said.get("over") for said in kernel.said("delta", [m])))
    deltas = [m for m in kernel.heard if kernel.said("delta", [m])]
    numbers = [kernel.said("delta", [m])[0]["seq"] for m in deltas]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    ended = [index for m in deltas for index, row in rows(m).items() if row[0] == 4]
    assert len(ended) == len(set(ended))
    assert len(ended) > 250


def test_the_kernel_goes_on(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(20_000).play(0.8, step=50); batch")
    asked = kernel.run("begun = time.perf_counter(); sum(range(1000)); print(time.perf_counter() - begun)")
    first, last = times([asked[0], asked[-1]])
    assert last - first < 0.5
    kernel.until(lambda m: m["msg_type"] == "update_display_data")


def test_a_cell_that_blocks_is_drawn_meanwhile(kernel: Kernel) -> None:
    shown = kernel.run("batch = FakeBatch(300).play(1); display(batch); time.sleep(1.5)")
    assert len(kernel.said("delta", shown)) >= 5
    assert outputs(shown, "update_display_data")


def test_ten_thousand_updates_cost_little(kernel: Kernel) -> None:
    """Of CPU on the thread that draws, while a view of 100,000 rows with text results is looked at. The least of three:
    on a busy machine the same work takes longer."""
    kernel.run("import qnb.notebook.stage as stage\nbatch = FakeBatch(100_001, failing=0.1); batch")
    kernel.ready()
    kernel.until(lambda m: kernel.said("delta", [m]) == [] and kernel.said("beat", [m]) != [], 30)  # all text is there
    code = """
costs = []
clock = time.pthread_getcpuclockid(stage.STAGE._thread.ident)
for first in range(0, 30_000, 10_000):
    before, begun = time.clock_gettime(clock), time.perf_counter()
    for index in range(10_000):
        batch.move([first + index], "failed" if index % 10 == 0 else "done")
        while time.perf_counter() - begun < index / 10_000:
            pass
    costs.append(time.clock_gettime(clock) - before)
    if costs[-1] < 0.030:
        break
"""
    kernel.run(code)
    assert kernel.value("min(costs)") < 0.030
    kernel.run("batch.cancel()")
    kernel.send(kernel.widget(), {"kind": "gone", "view": "a", "n": 1})


def test_what_is_shown_is_asked_for(kernel: Kernel) -> None:
    """Text follows as there is time, and does not keep a view waiting for what it looks at."""
    kernel.run("batch = FakeBatch(50_000); batch.move(range(50_000), 'done'); batch")
    kernel.ready()
    texts = kernel.ask("texts", indices=[49_998, 49_999])
    assert texts[0] == [2, [49_998, 49_999], ["'left'", "'right'"]]
    assert texts[1][:2] == [-1, [49_998, 49_999]]
    kernel.send(kernel.widget(), {"kind": "gone", "view": "a", "n": 1})


def test_nothing_is_drawn_while_nothing_changes(hasty_kernel: Kernel) -> None:
    kernel = hasty_kernel
    kernel.run("batch = FakeBatch(10); batch")
    kernel.ready()
    kernel.until(lambda m: bool(kernel.said("beat", [m])))
    quiet = kernel.listen(1)
    assert {message["kind"] for message in kernel.said(messages=quiet)} == {"beat"}
    kernel.run("batch.finish()")


def test_ready_and_resync_are_answered_with_everything(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(10); batch")
    for message in ({"kind": "ready", "view": "a"}, {"kind": "resync"}):
        kernel.send(kernel.widget(), message)
        answer = kernel.until(lambda m: bool(kernel.said("snapshot", [m])))
        assert len(rows(answer)) == 10
    kernel.run("batch.finish()")


def test_hidden_and_closed_views_are_sent_nothing(hasty_kernel: Kernel) -> None:
    """For many heartbeats."""
    kernel = hasty_kernel
    kernel.run("batch = FakeBatch(10_000).play(10); batch")
    kernel.ready()
    for number, (kind, again) in enumerate((("hidden", "shown"), ("gone", None))):
        kernel.send(kernel.widget(), {"kind": kind, "view": "a", "n": 2 * number + 1})
        kernel.heed()
        assert not kernel.said(messages=kernel.listen(1))
        if again:
            kernel.send(kernel.widget(), {"kind": again, "view": "a", "n": 2})
            news = kernel.until(lambda m: bool(kernel.said("delta", [m])))
            assert len(rows(news)) > 500  # what has happened meanwhile
    kernel.run("batch.finish()")
    assert [m for m in kernel.heard if m["msg_type"] == "update_display_data"]


def test_a_message_of_a_view_is_no_cell(kernel: Kernel) -> None:
    """It may come on another thread while a cell draws figures: matplotlib shows and closes them after each cell."""
    kernel.run("ends = []\nget_ipython().events.register('post_execute', lambda: ends.append(1))")
    kernel.run("batch = FakeBatch(10); batch")
    for kind in ("ready", "hidden", "shown"):
        kernel.send(kernel.widget(), {"kind": kind, "view": "a"})
    kernel.until(lambda m: bool(kernel.said("snapshot", [m])))
    kernel.heed()
    assert kernel.value("len(ends)") == 2
    kernel.run("batch.finish()")


def test_the_word_of_a_view_that_was_overtaken_counts_no_more(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(10_000).play(30); batch")
    kernel.send(kernel.widget(), {"kind": "hidden", "view": "a", "n": 1})
    kernel.send(kernel.widget(), {"kind": "ready", "view": "a", "n": 0})
    kernel.heed()
    assert not kernel.said(messages=kernel.listen(0.5))
    kernel.run("batch.finish()")


def test_a_first_word_that_was_overtaken_still_brings_everything(kernel: Kernel) -> None:
    """A view that has no rows would make nothing of changes."""
    kernel.run("batch = FakeBatch(10_000).play(30); batch")
    for number, kind in ((1, "hidden"), (0, "ready")):
        kernel.send(kernel.widget(), {"kind": kind, "view": "a", "n": number})
    kernel.heed()
    kernel.send(kernel.widget(), {"kind": "shown", "view": "a", "n": 2})
    first = kernel.until(lambda m: bool(kernel.said("snapshot", [m]) or kernel.said("delta", [m])))
    assert len(rows(first)) == 10_000
    kernel.run("batch.finish()")


def test_a_first_word_that_comes_after_the_last_one_keeps_nothing(hasty_kernel: Kernel) -> None:
    """Nobody would ever say again that this view is gone."""
    kernel = hasty_kernel
    kernel.run("batch = FakeBatch(10); batch.finish(); batch")
    for number, kind in ((1, "gone"), (0, "ready")):
        kernel.send(kernel.widget(), {"kind": kind, "view": "a", "n": number})
    kernel.heed()
    kernel.until(lambda m: m["msg_type"] == "comm_close" and m["content"]["comm_id"] == kernel.widget(), 5)
    assert kernel.value("batch.listeners") == 0


def test_cancel_is_acknowledged_and_done(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(50).play(60); batch")
    kernel.send(kernel.widget(), {"kind": "ask", "id": "7", "what": "cancel", "with": {}})
    kernel.until(lambda m: {"kind": "ack", "id": "7"} in kernel.said(messages=[m]), 1.5)
    [answer] = kernel.said("answer", [kernel.until(lambda m: bool(kernel.said("answer", [m])))])
    assert (answer["id"], answer["ok"], answer["value"]) == ("7", True, "49 calls cancelled")
    assert kernel.value("(batch.cancels, batch.counts['cancelled'])") == (1, 49)
    kernel.run("batch.finish()")


def test_what_cannot_be_done_is_answered_in_words(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(5); batch")
    for what, argument, words in (("detail", {"index": 5}, "IndexError"), ("draw", {}, "cannot be asked")):
        kernel.send(kernel.widget(), {"kind": "ask", "id": "8", "what": what, "with": argument})
        [answer] = kernel.said("answer", [kernel.until(lambda m: bool(kernel.said("answer", [m])))])
        assert not answer["ok"]
        assert words in answer["value"]
    kernel.run("batch.finish()")


def test_a_second_try_has_a_view_of_its_own(kernel: Kernel) -> None:
    kernel.run("batch = FakeBatch(9); batch.move(range(9), 'failed'); batch")
    kernel.ready()
    first = kernel.widget()
    again = kernel.ask("retry")
    assert again["calls"] == 9
    assert kernel.widget() != first
    kernel.ready("b")
    kernel.until(lambda m: any(said.get("over") for said in kernel.said("delta", [m])))
    for comm, view in ((first, "a"), (kernel.widget(), "b")):
        kernel.send(comm, {"kind": "gone", "view": view, "n": 1})


def test_showing_twice_is_one_widget_and_two_outputs(kernel: Kernel) -> None:
    shown = outputs(kernel.run("batch = FakeBatch(10); display(batch, batch)"))
    assert len({output["data"][WIDGET]["model_id"] for output in shown}) == 1
    kernel.run("batch.finish()")
    updated = outputs(kernel.heard, "update_display_data")
    assert [output["transient"] for output in updated] == [output["transient"] for output in shown]


def test_a_batch_that_is_over_is_live_too(kernel: Kernel) -> None:
    """Its table can be sorted and its rows opened; whoever has no browser sees the end at once."""
    heard = kernel.run("batch = FakeBatch(10); batch.finish(); batch")
    [update] = outputs(heard, "update_display_data")
    assert set(update["data"]) == {"text/html", "text/plain"}
    assert len(rows(kernel.ready())) == 10
    kernel.send(kernel.widget(), {"kind": "gone", "view": "a", "n": 1})


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
def test_two_hundred_cells_leave_nothing_behind(hasty_kernel: Kernel) -> None:
    kernel = hasty_kernel
    kernel.run(COUNT)
    before = kernel.value("count()")
    for _ in range(200):
        kernel.request("batch = FakeBatch(4); batch", "here")
        last = kernel.request("batch.finish()", "there")
    kernel.ended(last, 60)
    kernel.run("settle(lambda: live.STAGE._thread is None)")
    after = kernel.value("count()")
    assert all(now <= then for now, then in zip(after, before, strict=True)), (before, after)
    assert kernel.value("batch.listeners") == 0


def test_a_kernel_that_ends_leaves_the_last_state(fresh_kernel: Kernel) -> None:
    [output] = outputs(fresh_kernel.run("batch = FakeBatch(100).play(60); batch"))
    fresh_kernel.client.shutdown()
    update = fresh_kernel.until(lambda m: m["msg_type"] == "update_display_data")["content"]
    assert update["transient"] == output["transient"]
    assert set(update["data"]) == {"text/html", "text/plain"}
    assert "of 100" in update["data"]["text/plain"]


def test_a_batch_whose_views_fail_does_not_hurt_the_others(fresh_kernel: Kernel) -> None:
    fresh_kernel.run("good, bad = FakeBatch(10), FakeBatch(10)\ndisplay(bad, good)")
    fresh_kernel.run("from qnb.notebook.stage import STAGE\nbad.rate = None; bad.move([0], 'running')")
    fresh_kernel.run("while len(STAGE.views()) > 1: time.sleep(0.01)")
    fresh_kernel.run("good.move([0], 'running')")
    fresh_kernel.until(lambda m: bool(fresh_kernel.said("delta", [m])))
