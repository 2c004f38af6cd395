from tools.metrics_page import PAGE, page


def test_the_page_of_metrics_is_what_the_meters_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tools/metrics_page.py"
