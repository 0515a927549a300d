"""Write chatd/protocol/confusables.txt: ``python docs/confusables.py FILE``, FILE being Unicode's confusables.txt.

Unicode publishes it under https://www.unicode.org/Public/security/latest/ (UTS 39, "Unicode Security Mechanisms").
"""

import sys
from pathlib import Path

from chatd.protocol.nick import CONFUSABLES

NOTICE = """\
# The characters that look like others, of Unicode's confusables.txt, version {version} (UTS 39).
# A line is a prototype in hexadecimal, ";", and the characters that look like it.
# Written by docs/confusables.py, which leaves white space out.
#
# Copyright (c) 1991-2025 Unicode, Inc.
# UNICODE LICENSE V3
#
# NOTICE TO USER: Carefully read the following legal agreement. BY DOWNLOADING, INSTALLING, COPYING OR OTHERWISE
# USING DATA FILES, AND/OR SOFTWARE, YOU UNEQUIVOCALLY ACCEPT, AND AGREE TO BE BOUND BY, ALL OF THE TERMS AND
# CONDITIONS OF THIS AGREEMENT. IF YOU DO NOT AGREE, DO NOT DOWNLOAD, INSTALL, COPY, DISTRIBUTE OR USE THE DATA FILES
# OR SOFTWARE.
#
# Permission is hereby granted, free of charge, to any person obtaining a copy of data files and any associated
# documentation (the "Data Files") or software and any associated documentation (the "Software") to deal in the Data
# Files or Software without restriction, including without limitation the rights to use, copy, modify, merge, publish,
# distribute, and/or sell copies of the Data Files or Software, and to permit persons to whom the Data Files or
# Software are furnished to do so, provided that either (a) this copyright and permission notice appear with all copies
# of the Data Files or Software, or (b) this copyright and permission notice appear in associated Documentation.
#
# THE DATA FILES AND SOFTWARE ARE PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT
# LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT OF THIRD PARTY
# RIGHTS.
#
# IN NO EVENT SHALL THE COPYRIGHT HOLDER OR HOLDERS INCLUDED IN THIS NOTICE BE LIABLE FOR ANY CLAIM, OR ANY SPECIAL
# INDIRECT OR CONSEQUENTIAL DAMAGES, OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN
# AN ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR
# PERFORMANCE OF THE DATA FILES OR SOFTWARE.
#
# Except as contained in this notice, the name of a copyright holder shall not be used in advertising or otherwise to
# promote the sale, use or other dealings in these Data Files or Software without prior written authorization of the
# copyright holder.
"""


def table(text: str) -> str:
    """Return the lines of our file for the text of Unicode's file."""
    version = next(line.split()[-1] for line in text.splitlines() if line.startswith("# Version:"))
    classes: dict[str, list[str]] = {}
    for line in text.splitlines():
        source, _, rest = line.partition("#")[0].partition(";")
        if rest and not chr(int(source, 16)).isspace():
            prototype = rest.partition(";")[0].strip()
            classes.setdefault(prototype, []).append(source.strip())
    lines = [f"{prototype};{' '.join(sources)}\n" for prototype, sources in classes.items()]
    return NOTICE.format(version=version) + "".join(sorted(lines))


if __name__ == "__main__":
    CONFUSABLES.write_text(table(Path(sys.argv[1]).read_text(encoding="utf-8-sig")), encoding="ascii")
