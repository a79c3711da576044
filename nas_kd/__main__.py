"""``python -m nas_kd`` is ``nas-kd``."""

from nas_kd.cli.main import main

if __name__ == "__main__":
    main()
