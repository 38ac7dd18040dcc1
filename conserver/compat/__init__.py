"""The import names of the existing conserver, for links and storages that were written for it.

    from lib.vcon_redis import VconRedis          # or from server.lib.vcon_redis
    from vcon import Vcon

Such lines work, wherever in the file they stand, in a module that the config names, in the other modules of its top
package, and in those in the folder of the config. They are read as imports of `conserver.compat.lib.vcon_redis` and so
on when the module is loaded (`old_names`). So there never is a module `lib`, `vcon` or `settings` in `sys.modules` that
hides another one: whoever else imports such a name gets what is installed under it.

Which one wins, in a module that has the old names:

1. for modules in the folder of the config, `settings.py`, `config.py` and the like (names without a dot) beside it;
2. the old names, also where something of that name is installed, such as PyPI's `vcon`: the link was written for them;
3. everything else, also other parts of these packages: `lib.mine`, `vcon.party`, `from vcon import Party`.

A test of such a link has no config. There `install()`, in conftest.py, makes the names importable by all.
"""

from conserver.compat.in_force import use
from conserver.compat.old_names import allow, allow_folder, install, is_old_name

__all__ = ["allow", "allow_folder", "install", "is_old_name", "use"]
