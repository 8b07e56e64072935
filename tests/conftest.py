from hypothesis import settings

pytest_plugins = ["tests.s3_fixtures"]

settings.register_profile("timeless", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("timeless")
