import subprocess
import sys
from pathlib import Path

from compressai.models import CompressionModel
from compressai.utils.plot.__main__ import main as plot
from test_bitstream import tiny

import nas_kd
from nas_kd.export import rd_file
from nas_kd.weights import save_student, write_text

ROOT = Path(__file__).parents[1]


def test_the_public_face_is_this():
    assert set(nas_kd.__all__) == {"__version__", "load_student"}


def test_load_student_gives_a_compression_model_of_compressai(tmp_path: Path):
    save_student(tiny("mean-scale"), tmp_path)
    model = nas_kd.load_student(tmp_path)
    assert isinstance(model, CompressionModel)
    assert model.coder is not None


def test_the_package_alone_imports_no_torch():
    code = "import sys, nas_kd; nas_kd.__version__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


def test_compressais_plot_reads_a_result_file(tmp_path: Path):
    points = {"bpp": [0.1, 0.2, 0.4], "psnr_db": [28.0, 30.0, 32.0]}
    write_text(tmp_path / "rd.json", rd_file("a student", points, {}))
    plot(["-f", str(tmp_path / "rd.json"), "-o", str(tmp_path / "plot.png")])
    assert (tmp_path / "plot.png").stat().st_size > 5000
