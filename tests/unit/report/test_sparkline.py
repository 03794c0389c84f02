from tutelage.report import sparkline


def test_sparkline_runs_from_the_smallest_to_the_largest_value():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, -5.0]) == "█▁"


def test_sparkline_averages_what_does_not_fit():
    assert sparkline([0, 0, 9, 9], width=2) == "▁█"
    assert len(sparkline(range(1000), width=25)) == 25


def test_sparkline_of_equal_missing_or_no_values():
    assert sparkline([2, 2, 2]) == "▁▁▁"
    assert sparkline([1, float("nan"), 2, float("inf")]) == "▁█"
    assert sparkline([]) == ""
