from hypothesis import settings

pytest_plugins = ["tests.s3_fixtures"]

settings.register_profile("timeless", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("timeless")


def pytest_collection_modifyitems(items):
    """Those that run jobs first: with two workers, nothing long is left for the end."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)
