from __future__ import annotations

from fake_clock import FakeClockLoop

from purnet_serve.observability.loop_lag import INTERVAL_S, LoopLag


def test_a_loop_on_time_has_no_lag_and_a_blocked_one_shows_it():
    loop, seen = FakeClockLoop(), []
    lag = LoopLag(loop, seen.append)
    lag.start()
    loop.advance(2 * INTERVAL_S)
    assert seen == [0.0, 0.0]
    loop.now += INTERVAL_S + 3  # the loop was busy with something else
    loop.settle()
    assert seen == [0.0, 0.0, 3.0]
    lag.stop()
    loop.advance(10)
    assert len(seen) == 3
    loop.close()
