"""What documents say of devices that we cannot measure: three tables, a row per device, and where each row comes from.

A cell is ``value``, ``value(low..high)`` or ``-`` (the chip has none, or nothing was found), and may end in a mark:
``~`` second-hand or derived from other cells, within 5 %; ``?`` not verified against a document, within 15 %.
Without a mark a document says it, within 1 %; counts are exact. A range that is written out goes before those.

Traps that were met:

* Rates are dense. NVIDIA prints the sparse ones, twice as high, and marks them with a small star.
* 16 bit accumulates in fp32, where GeForce runs at half of the rate that is advertised.
* Jetson "TOPS" are sparse and include the DLA, which runs no language model: these are the GPU's alone, in MAXN. The
  25 W mode of an Orin NX holds its GPU at 408 MHz of 918; "Super" modes need JetPack 6.1 and are devices of their own.
* Nameplate bandwidth of a B200 is 8 TB/s, that of its bus and clock 7.67; resellers give an H100 SXM anything from 3.0
  to 3.35 TB/s, and its dense bf16 as the 133 TFLOP/s of the cores without tensor cores.
* A GPU's memory is counted in GiB and sold as GB; what the driver shows is less. An L40S and an L4 lose 6 % to ECC.
"""

from dataclasses import dataclass

CHIPS = """
device                  cc    units  MHz    MHz_fp32  fp32  fp16  fp8    int8   int4   fp4    MiB_cache
h100_sxm                9.0   132    1830   1980      256   4096  8192   8192   -      -      50
h100_pcie               9.0   114    1620~  1755      256   4096  8192   8192   -      -      50
h200_sxm                9.0   132    1830~  1980      256   4096  8192   8192   -      -      50(50..60)~
a100_sxm                8.0   108    1410   1410      128   2048  -      4096   8192   -      40
l40s                    8.9   142    2520   2520      256   1024  2048   2048   4096   -      96(48..96)?
l4                      8.9   58     2040   2040      256   1024  2048   2048   4096   -      48
rtx_4090                8.9   128    2520   2520      256   512   1024   2048   4096   -      72
rtx_5090                12.0  170    2407   2407      256   512   2048   2048   -      4096   96
b200_sxm                10.0  148    1860~  1980~     256   8192  16384  16384  -      32768  126.5
jetson_agx_orin         8.7   16     1300   1300      256   2048  -      4096   8192?  -      4
jetson_orin_nx          8.7   8      918?   918?      256   2048  -      4096   8192?  -      4(2..4)?
jetson_orin_nano        8.7   8      625    625       256   2048  -      4096   8192?  -      4(2..4)?
jetson_orin_nano_super  8.7   8      1020   1020      256   2048  -      4096   8192?  -      4(2..4)?
jetson_agx_thor         11.0  20     1570~  1570~     256   8192  16384  -      -      32768  32
raspberry_pi_5          -     4      2400   2400      16    -     -      64     -      -      2
intel_n100              -     4      2900~  2900~     16    -     -      64     -      -      6
apple_m2                -     10     1398   1398      256   256   -      -      -      -      8
"""
"""Clocks are those at which the rates are stated, operations are per clock and unit: a streaming multiprocessor, a
core of a CPU, a core of Apple's GPU; they follow from rates, units and clocks. bf16 runs as fp16."""

RATES = """
device                  fp32                fp16           bf16           fp8             int8              int4    fp4
h100_sxm                66.9                989.4          989.4          1978.9          1978.9            -       -
h100_pcie               51                  756.5          756.5          1513            1513              -       -
h200_sxm                66.9                989            989            1978            1978              -       -
a100_sxm                19.5                312            312            -               624               1248    -
l40s                    91.6                362.05         362.05         733             733               1466~   -
l4                      30.3                121            121            242.5           242.5             485~    -
rtx_4090                82.6                165.2          165.2          330(327..661)   660.6             1321.2  -
rtx_5090                104.8               209.5~         209.5~         838(419..846)~  838~              -       1676
b200_sxm                75(74..80)          2250           2250           4500            4500              -       9000
jetson_agx_orin         5.3                 42.5(21..43)~  42.5(21..43)~  -               85                170?    -
jetson_orin_nx          1.88?               15(7.5..17)?   15(7.5..17)?   -               30?               60?     -
jetson_orin_nano        1.28~               10.2(5..11)~   10.2(5..11)~   -               20.5(19.8..21)    41?     -
jetson_orin_nano_super  2.09~               16.7(7..17)~   16.7(7..17)~   -               33.5              67?     -
jetson_agx_thor         8.04?               258.5~         258.5~         517~            -                 -       1035
raspberry_pi_5          0.154(.08..0.155)~  -              -              -               0.614(.1..0.62)?  -       -
intel_n100              0.185               -              -              -               0.74?             -       -
apple_m2                3.58                3.58~          -              -               -                 -       -
"""
"""Dense products, 10^12 operations per second. Both operands are of the format: weights of int4 that are widened to
16 bit before the product run at the rate of 16 bit."""

MEMORY = """
device                  MiB                     bits  MT/s   GB/s               W                modes_W      us
h100_sxm                81559                   5120  5238?  3350               700(350..700)    700          3(0.6..10)
h100_pcie               81559                   5120  3186   2000(1980..2040)   350(175..350)    350          3(0.6..10)
h200_sxm                143771                  6144  6250~  4800               700(350..700)    700          3(0.6..10)
a100_sxm                81920                   5120  3186?  2039               400(200..400)    400          3(0.6..10)
l40s                    46068                   384   18000  864                350(175..350)    350          3(0.6..10)
l4                      23034                   192   12500  300                72(36..72)       72           3(0.6..10)
rtx_4090                24576(24000..24576)~    384   21000  1008               450(225..450)    450          3(0.6..10)
rtx_5090                32607                   512   28000  1792               575(290..600)    575          3(0.6..10)
b200_sxm                182630                  7680  7992   7672(7670..8000)   1000(500..1000)  1000         3(0.6..10)
jetson_agx_orin         65536(61440..65536)     256?  6400?  204.8?             60(25..60)       15/30/50/60  8(1..30)
jetson_orin_nx          16384(15000..16384)~    128~  6400~  102.4~             25(10..25)       10/15/25     8(1..30)
jetson_orin_nano        8192(7400..8192)~       128   4266   68.3               15(7..15)        7/15         8(1..30)
jetson_orin_nano_super  8192(7400..8192)~       128   6398   102.4              25(10..28)       15/25        8(1..30)
jetson_agx_thor         131072(122000..131072)  256   8533~  273                130(60..130)     40/130       8(1..30)
raspberry_pi_5          8192(8048..8192)        32    4267   17.07              12(9..14)        12           2(0.3..20)
intel_n100              16384(4096..16384)      64    4800   38.4(25.6..38.4)   6(6..25)~        6            2(0.3..20)
apple_m2                16384(8192..24576)      128   6400   102.4(100..102.4)  20(10..22)~      20           5(1..50)
"""
"""Memory is what the driver shows where that was found, else what is built in; of N100 and M2 machines it varies.
Power is the limit, its interval what full load may draw: memory-bound work stays well below on the large ones."""

_AICONFIGURATOR = "NVIDIA aiconfigurator, src/aiconfigurator/systems/{}.yaml"
_DRIVER_MIB = "memory as nvidia-smi shows it (modal-labs/modal-client pull request 2797)"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet, SXM and PCIe, reprinted by HPC Tech (archive-lib.hpctech.co.jp)"
_H100_CLOCKS = "clocks of 1.83 and 1.98 GHz and the dense rates in glennklockwood.com/garden/processors/h100"
_A100 = "NVIDIA A100 datasheet r4 as quoted in glennklockwood.com/garden/processors/A100"
_A100_QUERY = "SMs, clock and L2 in deviceQuery of an A100 (PC2 Paderborn, page on the A100 40GB)"
_L40S = "NVIDIA L40/L40S datasheet's table, reprinted by mullet.se (product 355414)"
_L4 = "fpsbench.com, page on the L4 (7424 shaders, which are 58 SMs; its '60 SM' is the full AD104's)"
_RTX_4090 = "waredb.com, page on the GeForce RTX 4090; tomshardware.com, RTX 5090 versus RTX 4090"
_RTX_5090 = "fpsbench.com, page on the RTX 5090; Linux Format, May 2025, RTX 5090"
_B200 = "NVIDIA HGX B200 at 1000 W as quoted in glennklockwood.com/garden/processors/B200"
_B200_QUERY = "device query of a B200 (pytorch/ao pull request 4002)"
_ORIN_QUERY = "deviceQuery of an AGX Orin (tmcdonell/cuda issue 77)"
_ORIN_BRIEF = "NVIDIA Jetson AGX Orin Series Technical Brief as summarised in mzph.cn/web/30785"
_ORIN_FP16 = "16 bit from int8 as on the A100; nothing found on fp32 accumulation, halved on GeForce Ampere"
_NANO = "NVIDIA Orin Nano data sheet (scribd 673174036): 625 MHz, 128 bit; the 4 GB half has 10 dense TOPS"
_SUPER = (
    "NVIDIA's Jetson Orin Nano Super page as quoted in golemfactory/yagna issue 3405: 67 sparse TOPS, 102 GB/s, 7-25 W"
)
_NVPMODEL = "NVIDIA {} (LineageOS/android_device_nvidia_concord)"
_THOR_FORUM = "NVIDIA developer forum 356355: 20 SMs and 32 MiB L2 as CUDA reports them"
_THOR_RATES = (
    "2070 sparse fp4 (learnaivisually.com, jetson-thor-edge-blackwell); bf16 as in huggingface.co/hardware/jetson-t5000"
)
_PI = (
    "Raspberry Pi 5 product brief as quoted in the Zephyr 4.0 board page; 32 bit, 17 GB/s in threedots.ovh/blog/?p=567"
)
_N100 = "notebookcheck.com, Intel Processor N100; cache in jutek.id, Intel N100"
_N100_RUN = "measured by hiroog/vfpbench, log/Intel(R) N100.txt: 54.2 GFLOP/s by one core at 3.4 GHz, 185.0 by four"
_M2 = "askgeek.io, Apple M2 (10-core GPU): 1398 MHz, 3.578 TFLOP/s, LPDDR5-6400"

_GPU_LAUNCH = (
    "modelled: 3 us in NVIDIA aiconfigurator; 1.1 us each in a CUDA graph (pytorch issue 161104), 0.6 in a graph and "
    "6.4 eager on a laptop's RTX 5070 Ti (ahrefs/ocannl issue 488); the host's processor and the runtime decide"
)
_JETSON_LAUNCH = "modelled, nothing found: between a discrete GPU's and several times that, for its host cores are slow"
_CPU_LAUNCH = "modelled, nothing found: a call and a barrier of threads; the runtime decides"
_METAL_LAUNCH = "modelled, nothing found: encoding a Metal command, and waking the GPU at worst"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a device is, and the documents that its cells come from."""

    vendor: str
    architecture: str
    chip: str
    rates: str
    memory: str
    power: str
    launch: str


def _nvidia(architecture: str, *, chip: str, rates: str, memory: str, power: str, launch: str = _GPU_LAUNCH) -> About:
    return About(
        vendor="NVIDIA", architecture=architecture, chip=chip, rates=rates, memory=memory, power=power, launch=launch
    )


def _orin(*, chip: str, rates: str, memory: str, power: str) -> About:
    return _nvidia(
        "Ampere", chip=chip, rates=f"{rates}; {_ORIN_FP16}", memory=memory, power=power, launch=_JETSON_LAUNCH
    )


ABOUT = {
    "h100_sxm": _nvidia(
        "Hopper",
        chip=f"{_H100}; {_H100_CLOCKS}",
        rates=f"{_H100}; {_H100_CLOCKS}",
        memory=f"{_H100}; {_DRIVER_MIB}",
        power=_H100,
    ),
    "h100_pcie": _nvidia(
        "Hopper",
        chip=f"{_H100}; tensor clock from its rates, boost clock in cputronic.com, NVIDIA H100 PCIe",
        rates=_H100,
        memory=f"{_H100}; memory clock of 1593 MHz in cputronic.com, NVIDIA H100 PCIe; {_DRIVER_MIB}",
        power="NVIDIA H100 PCIe GPU Product Brief, PB-11133-001_v02, November 2022",
    ),
    "h200_sxm": _nvidia(
        "Hopper",
        chip="hmc-tech.com, H200 SXM (16896 shaders, which are 132 SMs; 1980 MHz); otherwise an H100's",
        rates=f"{_AICONFIGURATOR.format('h200_sxm')}; fp32 in hmc-tech.com, H200 SXM",
        memory=(
            f"{_AICONFIGURATOR.format('h200_sxm')}; nvidia-smi in NVIDIA/cuda-samples issue 311; "
            "bus of 6 x 1024 bit at 6.2 GT/s in geektopia.es, 2023-11-13"
        ),
        power="MLPerf Inference v4.1, closed/NVIDIA/systems/H200-SXM-141GBx8_TRT_MaxQ.json: TGP 700 W",
    ),
    "a100_sxm": _nvidia(
        "Ampere",
        chip=_A100_QUERY,
        rates=_A100,
        memory=f"{_A100}; {_DRIVER_MIB}",
        power=_AICONFIGURATOR.format("a100_sxm"),
    ),
    "l40s": _nvidia(
        "Ada Lovelace",
        chip="hmc-tech.com, L40S (18176 shaders, which are 142 SMs; 2520 MHz); L2: AD102's, or 48 in m.reach.dog",
        rates=f"{_L40S}; int8 as {_AICONFIGURATOR.format('l40s')}; int4 in hmc-tech.com, L40S",
        memory=f"{_L40S}; {_AICONFIGURATOR.format('l40s')}; 18 GT/s in itcreations.com, L40S",
        power=_L40S,
    ),
    "l4": _nvidia(
        "Ada Lovelace",
        chip=_L4,
        rates=f"NVIDIA L4's 242 and 485 sparse as quoted in grokipedia.com, NVIDIA L4 vs L40S; fp32: {_L4}",
        memory=f"{_L4}; {_DRIVER_MIB}",
        power=_L4,
    ),
    "rtx_4090": _nvidia("Ada Lovelace", chip=_RTX_4090, rates=_RTX_4090, memory=_RTX_4090, power=_RTX_4090),
    "rtx_5090": _nvidia(
        "Blackwell",
        chip=_RTX_5090,
        rates=(
            f"{_RTX_5090}; 16 bit and fp8 from an RTX 5060 Ti that ran 508 and 1995 operations per clock and SM with "
            "fp32 results (QuantumDrizzy/BLACKWALL); aiconfigurator's 419 in bf16 comes from a card that is not halved"
        ),
        memory=f"{_RTX_5090}; {_AICONFIGURATOR.format('rtx_5090')}",
        power=_RTX_5090,
    ),
    "b200_sxm": _nvidia(
        "Blackwell",
        chip=f"{_B200_QUERY}; clocks in hmc-tech.com, NVIDIA B200",
        rates=f"{_B200}; fp32 in hmc-tech.com, where NVIDIA rounds to 80",
        memory=f"{_B200_QUERY}; aiconfigurator and others: 8 TB/s",
        power=_B200,
    ),
    "jetson_agx_orin": _orin(
        chip=_ORIN_QUERY,
        rates=f"{_ORIN_BRIEF}: 5.3 TFLOP/s, 170 sparse TOPS of its GPU",
        memory=_ORIN_QUERY,
        power="NVIDIA developer forum 323456, quoting the module data sheet: up to 60 W",
    ),
    "jetson_orin_nx": _orin(
        chip="an AGX Orin's SMs, 8 of them (" + _NVPMODEL.format("nvpmodel_p3767_0000.conf") + ")",
        rates="100 TOPS in all (NVIDIA Jetson Orin NX Series datasheet, copy in icub-tech-iit/cad-libraries)",
        memory="an Orin Nano Super's memory",
        power="NVIDIA Jetson Orin NX Series datasheet (copy in icub-tech-iit/cad-libraries): 10 to 25 W",
    ),
    "jetson_orin_nano": _orin(
        chip=_NANO,
        rates=f"{_NANO}; fp32 from its clock",
        memory=f"{_NANO}; memory clock in {_NVPMODEL.format('nvpmodel_p3767_0003.conf')}",
        power=_NVPMODEL.format("nvpmodel_p3767_0003.conf"),
    ),
    "jetson_orin_nano_super": _orin(
        chip="brojogopalsapui.com, Jetson Orin Nano Super: 1.02 GHz, 8 SMs",
        rates=f"{_SUPER}; its 25 W mode holds the GPU at 918 MHz; fp32 from its clock",
        memory=f"{_SUPER}; memory clock in {_NVPMODEL.format('nvpmodel_p3767_0003_super.conf')}",
        power=f"{_SUPER}; MAXN_SUPER has no limit",
    ),
    "jetson_agx_thor": _nvidia(
        "Blackwell",
        chip=f"{_THOR_FORUM}; 1570 MHz in torring.dev, rtx-spark-throttling",
        rates=_THOR_RATES,
        memory="antirez/ds4 pull request 788: 128 GB, 273 GB/s; 256 bit in technical.city, Jetson T5000",
        power=_THOR_RATES,
        launch=_JETSON_LAUNCH,
    ),
    "raspberry_pi_5": About(
        vendor="Raspberry Pi",
        architecture="Cortex-A76",
        chip=f"{_PI}; two pipes of multiply-adds in systemonchips.com, one in techarx.com",
        rates="4 cores x 2 pipes x 128 bit x 2.4 GHz; n4hy/OptimizedKernelsForRaspberryPi5_NvidiaCUDA ran 0.1 in int8",
        memory=f"{_PI}; 8048 MiB shown in geerlingguy/sbc-reviews issue 60",
        power="geerlingguy/sbc-reviews issues 60 and 81, Linpack on the same chip: 11.5 and 12.9 W at the wall",
        launch=_CPU_LAUNCH,
    ),
    "intel_n100": About(
        vendor="Intel",
        architecture="Gracemont",
        chip=f"{_N100}; {_N100_RUN}, so 2.9 GHz on all cores",
        rates=_N100_RUN,
        memory=f"{_N100}: one channel of DDR5-4800, or of DDR4-3200 at 25.6 GB/s",
        power=f"{_N100}: 6 W; boards allow more",
        launch=_CPU_LAUNCH,
    ),
    "apple_m2": About(
        vendor="Apple",
        architecture="Apple 8 GPU",
        chip=f"{_M2}; 128 ALUs per core in philipturner/metal-benchmarks; cache in HandWiki, Apple M2",
        rates=f"{_M2}; 16 bit as fast as 32 bit in philipturner/metal-benchmarks, for the M1",
        memory=f"{_M2}; Apple says 100 GB/s",
        power="huggingface.co/hardware/apple-m2: 20 W",
        launch=_METAL_LAUNCH,
    ),
}
