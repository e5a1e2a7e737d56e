"""The models and the cache of the tests of locate."""

from tests.locate.conftest import _cache_of_its_own, cache_folder, tiny  # noqa: F401
