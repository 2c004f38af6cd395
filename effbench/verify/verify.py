"""All checks over a path."""

from pathlib import Path

from effbench.plugin.catalog import Catalog
from effbench.verify.arithmetic import check_arithmetic
from effbench.verify.coverage import check_coverage
from effbench.verify.finding import Finding, Report
from effbench.verify.membership import check_membership
from effbench.verify.origin import check_copies, check_origin
from effbench.verify.place import check_folder
from effbench.verify.read import read_folders
from effbench.verify.statement import Known, check_statement


def verify(path: Path, catalog: Catalog) -> Report:
    """Check every record below a results folder, or a single one.

    Args:
        path: A results folder, any folder within it, or a record. Of a single record, what only a whole folder can show
            (rounds, baselines, missing cells) is not asked.
        catalog: The plugins, for the definitions of metrics and the present code of techniques.

    Raises:
        InputError: There is no such path, or nothing there that could be a record.
    """
    findings: list[Finding] = []
    folders = read_folders(path, findings)
    known = Known.of(catalog)
    for folder in folders:
        findings += check_folder(folder)
        findings += check_membership(folder)
        findings += check_origin(folder, catalog)
        if path.is_dir():
            findings += check_coverage(folder)
        for trial in folder.trials:
            findings += check_statement(trial, folder, known)
            findings += check_arithmetic(trial)
    findings += check_copies(folders)
    return Report(sum(len(folder.trials) for folder in folders), findings)
