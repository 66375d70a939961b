import multiprocessing
import os
import time

import pytest

from lookupffn.data.parallel import in_child, ordered_map, process_count
from lookupffn.errors import UserError


def slow_first(item):
    time.sleep(0.2 if item == 0 else 0)
    return item * item, os.getpid()


def test_results_keep_the_order_of_the_items():
    results = list(ordered_map(slow_first, range(20), processes=2))
    assert [value for value, _ in results] == [item * item for item in range(20)]
    assert os.getpid() not in {pid for _, pid in results}


def test_few_items_are_taken_ahead():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    results = ordered_map(abs, items(), processes=2)
    next(results)
    assert len(taken) <= 6
    results.close()


_prepared = {}


def prepare(value):
    _prepared["value"] = value


def prepared(item):
    return _prepared["value"] + item


def test_workers_are_initialised():
    assert list(ordered_map(prepared, [1, 2], processes=2, initializer=prepare, arguments=(10,))) == [11, 12]
    assert not _prepared  # the parent was not


def fail(item):
    raise ValueError(f"item {item}")


def die(item):
    os._exit(9)


def test_errors_of_workers_reach_the_caller():
    with pytest.raises(ValueError, match="item 3"):
        list(ordered_map(fail, [3], processes=1))
    with pytest.raises(UserError, match="a worker process was killed"):
        list(ordered_map(die, [3], processes=1))
    with pytest.raises(UserError, match="a worker process was killed"):
        in_child(die, 3)


def test_in_child():
    value, pid = in_child(slow_first, 3)
    assert value == 9 and pid != os.getpid()


def in_a_daemon(results):
    results.put((list(ordered_map(slow_first, [1, 2], processes=2)), in_child(os.getpid), os.getpid()))


def test_a_daemonic_process_works_in_place():
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    daemon = context.Process(target=in_a_daemon, args=(results,), daemon=True)
    daemon.start()
    mapped, child, pid = results.get(timeout=30)
    daemon.join(10)
    assert mapped == [(1, pid), (4, pid)] and child == pid


def test_process_count():
    assert process_count(3) == 3 and process_count(0) == 1
    assert 1 <= process_count() <= 32
