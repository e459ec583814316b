"""How a wheel is made: what pyproject.toml cannot say."""

from setuptools.command import build_py


class BuildPy(build_py.build_py):
    """The schema lies beside the modules, where they look for it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file("schema.sql", self.build_lib)
