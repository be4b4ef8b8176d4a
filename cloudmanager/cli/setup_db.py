"""``cm_setup_db``: create or upgrade the database of a catalog."""

from __future__ import annotations

import click

from cloudmanager.errors import CloudManagerError

__all__ = ["main"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("database", metavar="PATH-or-URL")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.pass_context
def main(context: click.Context, database: str, debug: bool) -> None:
    """Create the catalog in a database, or upgrade an older one.

    PATH-or-URL is the path of a SQLite file (it and its folders are created when missing) or
    an SQLAlchemy URL, like postgresql://user@server/name. Keep the password out of the
    command line: PostgreSQL reads it from PGPASSWORD or ~/.pgpass.

    Nothing is changed in a catalog that is up to date, or that a newer cloudmanager made.

    Exit codes: 0 done; 2 the argument or the database is wrong; 5 the database is locked or
    does not answer, try again.

    \b
    Examples:
      cm_setup_db db/production.sqlite3
      cm_setup_db postgresql://cloudmanager@db.example.org/catalog
    """
    # Here, so that --help loads no database library.
    from cloudmanager.catalog import set_up

    try:
        done = set_up(database)
    except CloudManagerError as exc:
        if debug:
            raise
        click.echo(f"cm_setup_db: {exc}", err=True)
        context.exit(5 if exc.retryable else 2)
    click.echo(done)


if __name__ == "__main__":
    main(prog_name="cm_setup_db")
