"""The command `dvt-timm`, from the shell to `dvt_timm.cli.main`.

`import dvt_timm` registers its names in timm, which takes the seconds that timm and torch take to load. While this
module is in `sys.modules` it does not, so that help, `list` and a mistyped option answer at once; `dvt_timm.cli.main`
registers the names before a command that needs them. The module lies beside the package because Python imports a
package before its modules.
"""


def main() -> int:
    """Run the process's command line; the exit status."""
    from dvt_timm.cli.main import main as run

    return run()
