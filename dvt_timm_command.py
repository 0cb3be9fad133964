"""The console script `dvt-timm`, outside the package so that it starts without importing torch and timm."""


def main() -> int:
    """Run the command line; the exit status."""
    from dvt_timm.cli.main import main as run

    return run()
