"""Which versions of packages are installed, for records and keys."""

from importlib.metadata import PackageNotFoundError, version

import prefopt


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed.

    This one's own is known without its metadata, which a source folder on the path does not have.

    Args:
        packages: Names of distributions.

    Examples:
        >>> sorted(versions("prefopt", "numpy", "not-installed"))
        ['numpy', 'prefopt']
    """
    found = {}
    for package in packages:
        try:
            found[package] = version(package) if package != "prefopt" else prefopt.__version__
        except PackageNotFoundError:
            continue
    return found
