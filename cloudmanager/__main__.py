"""``python -m cloudmanager``."""

from cloudmanager.cli import main

if __name__ == "__main__":
    main()
