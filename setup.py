"""The version, which comes from the history; pyproject.toml has everything else.

A tag v1.2.3 is version 1.2.3, and the fifth commit after it 1.2.4.dev5+g0123456. Where no tag is to be seen, as in
most clones and archives, NEXT_VERSION takes its place: whatever is built later than a release replaces it. A release is
a tag, a heading in CHANGELOG.md, and a new NEXT_VERSION.
"""

from setuptools import setup
from setuptools_scm.version import ScmVersion, get_local_node_and_timestamp, guess_next_dev_version

NEXT_VERSION = "0.2.0"

_WITHOUT_TAG = "0.0"  # what setuptools-scm calls it
_BUILD_FILE = '{{"version": "{version}", "commit": "{scm_version.node}"}}\n'


def version_of(source: ScmVersion) -> str:
    """Returns the public part of the version."""
    if str(source.tag) == _WITHOUT_TAG:
        return f"{NEXT_VERSION}.dev{source.distance or 0}"
    return guess_next_dev_version(source)


def commit_of(source: ScmVersion) -> str:
    """Returns the rest: the commit, and the time where something is not committed; nothing for a release."""
    if source.node is None or source.dirty or str(source.tag) != _WITHOUT_TAG:
        return get_local_node_and_timestamp(source)
    return f"+g{source.node.removeprefix('g')[:9]}"


setup(
    use_scm_version={
        "version_scheme": version_of,
        "local_scheme": commit_of,
        "fallback_version": f"{NEXT_VERSION}.dev0",
        "version_file": "server/build.json",
        "version_file_template": _BUILD_FILE,
    }
)
