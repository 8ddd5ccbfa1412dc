# A server of one exported student: no JAX, TensorFlow or torch in it.
#
#   python -m distill_sbs.convert --to=ctranslate2 --input=runs/quickstart --output=served
#   docker build -t distill_sbs_serve .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/served:/model:ro" distill_sbs_serve
FROM python:3.11-slim

# CTranslate2 computes with OpenMP.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*

COPY constraints.txt /source/
RUN pip install --no-cache-dir -c /source/constraints.txt \
    absl-py ctranslate2 'etils[epath]' gin-config ml_dtypes numpy prometheus_client rich sentencepiece \
    starlette uvicorn

COPY setup.py pyproject.toml README.md LICENSE /source/
COPY distill_sbs /source/distill_sbs
COPY gin /source/gin
COPY tasks /source/tasks
RUN pip install --no-cache-dir --no-deps /source && useradd --create-home server

USER server
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz')"]
# All of the container's addresses; `docker run -p 127.0.0.1:8000:8000` keeps it to this machine.
ENTRYPOINT ["python", "-m", "distill_sbs.serve", "--host=0.0.0.0", "--model=/model"]
