//! How long an engine step takes on fourteen model and GPU pairs, as coefficients.
//!
//! The numbers were fitted to the silicon measurements that NVIDIA publishes with aiconfigurator (Apache-2.0,
//! <https://github.com/ai-dynamo/aiconfigurator>): thanks to its authors. The residual of the fit is within 6 % at
//! p5/p95 for all pairs but the L40S (25 %) and the RTX PRO 6000 (14 %). `step.rs` turns them into milliseconds;
//! nothing here computes anything.

/// The numbers of tokens in a step at which `gemm_ms` was measured.
pub const GEMM_KNOTS: [u32; 21] =
    [1, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384];

/// What a decoding sequence costs in attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeCost {
    /// Paid once in a step that decodes anything.
    pub const_ms: f64,
    /// Paid for each decoding sequence.
    pub per_seq_ms: f64,
    /// Paid for each thousand tokens of context, all decoding sequences together.
    pub per_kctx_ms: f64,
}

/// What a chunk of a prompt costs in attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrefillCost {
    /// Paid once for each chunk.
    pub per_chunk_ms: f64,
    /// Paid for each thousand new tokens.
    pub per_ktok_ms: f64,
    /// Paid for each million pairs of a new token and a token it looks back at.
    pub per_mtok2_ms: f64,
}

/// One model on one kind of GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// The name on the command line.
    pub name: &'static str,
    /// The pair in words.
    pub what: &'static str,
    /// Time of everything that is not attention, at [`GEMM_KNOTS`] tokens in the step.
    pub gemm_ms: [f64; GEMM_KNOTS.len()],
    /// Decode attention.
    pub decode: DecodeCost,
    /// Prefill attention.
    pub prefill: PrefillCost,
    /// Tokens of KV cache that fit when 90 % of the GPU's memory is used.
    pub kv_tokens: u32,
}

/// The profile called `name`.
pub fn find(name: &str) -> Option<&'static Profile> {
    PROFILES.iter().find(|profile| profile.name == name)
}

/// Every profile; the first is the default.
pub static PROFILES: [Profile; 14] = [
    Profile {
        name: "h100-8b",
        what: "Llama-3.1-8B on H100",
        gemm_ms: [
            5.77, 6.111, 6.484, 6.568, 6.791, 6.41, 6.783, 7.409, 7.826, 9.826, 11.147, 15.759, 20.973, 31.043, 41.221,
            61.824, 81.943, 130.463, 175.043, 261.897, 348.737,
        ],
        decode: DecodeCost { const_ms: 0.3395, per_seq_ms: 0.003_227, per_kctx_ms: 0.043_717 },
        prefill: PrefillCost { per_chunk_ms: 0.168, per_ktok_ms: 0.6928, per_mtok2_ms: 0.726_62 },
        kv_tokens: 422_259,
    },
    Profile {
        name: "h100-7b",
        what: "Qwen2.5-7B on H100",
        gemm_ms: [
            5.457, 5.58, 5.986, 5.918, 5.945, 6.321, 6.477, 7.064, 7.459, 9.22, 10.753, 14.793, 20.334, 28.926, 39.838,
            59.34, 80.975, 123.1, 167.751, 242.732, 317.611,
        ],
        decode: DecodeCost { const_ms: 0.3102, per_seq_ms: 0.001_351, per_kctx_ms: 0.018_695 },
        prefill: PrefillCost { per_chunk_ms: 0.1277, per_ktok_ms: 0.474_48, per_mtok2_ms: 0.577_45 },
        kv_tokens: 979_638,
    },
    Profile {
        name: "h100-qwen3-8b",
        what: "Qwen3-8B on H100",
        gemm_ms: [
            5.93, 6.32, 6.742, 6.745, 6.9, 6.55, 6.767, 7.582, 8.183, 9.954, 11.257, 16.103, 20.839, 31.669, 41.557,
            63.608, 83.049, 130.666, 175.702, 263.111, 350.51,
        ],
        decode: DecodeCost { const_ms: 0.3819, per_seq_ms: 0.003_63, per_kctx_ms: 0.049_182 },
        prefill: PrefillCost { per_chunk_ms: 0.1894, per_ktok_ms: 0.795_54, per_mtok2_ms: 0.812_88 },
        kv_tokens: 373_036,
    },
    Profile {
        name: "h100-32b-tp2",
        what: "Qwen3-32B on H100 x 2",
        gemm_ms: [
            12.577, 13.11, 14.229, 14.393, 15.267, 14.357, 16.037, 16.518, 18.667, 22.555, 27.25, 40.63, 53.364,
            78.709, 104.344, 156.28, 216.448, 331.293, 442.241, 641.498, 843.692,
        ],
        decode: DecodeCost { const_ms: 0.7091, per_seq_ms: 0.003_087, per_kctx_ms: 0.042_733 },
        prefill: PrefillCost { per_chunk_ms: 0.3491, per_ktok_ms: 1.415_89, per_mtok2_ms: 1.448_28 },
        kv_tokens: 312_472,
    },
    Profile {
        name: "h100-70b-tp4",
        what: "Llama-3.1-70B on H100 x 4",
        gemm_ms: [
            13.941, 14.935, 15.176, 15.51, 16.274, 17.358, 18.209, 20.253, 21.835, 28.658, 34.935, 51.554, 66.894,
            98.653, 131.055, 199.97, 263.577, 413.55, 568.686, 800.436, 1031.862,
        ],
        decode: DecodeCost { const_ms: 0.9199, per_seq_ms: 0.001_206, per_kctx_ms: 0.027_079 },
        prefill: PrefillCost { per_chunk_ms: 0.3763, per_ktok_ms: 1.2177, per_mtok2_ms: 0.8279 },
        kv_tokens: 487_138,
    },
    Profile {
        name: "h200-8b",
        what: "Llama-3.1-8B on H200",
        gemm_ms: [
            4.454, 4.514, 4.822, 4.922, 5.078, 5.129, 5.239, 6.363, 6.574, 8.853, 10.586, 15.559, 20.217, 30.322,
            41.826, 59.713, 84.319, 127.22, 172.508, 260.779, 348.889,
        ],
        decode: DecodeCost { const_ms: 0.3666, per_seq_ms: 0.003_687, per_kctx_ms: 0.031_353 },
        prefill: PrefillCost { per_chunk_ms: 0.1698, per_ktok_ms: 0.660_98, per_mtok2_ms: 0.743_36 },
        kv_tokens: 871_982,
    },
    Profile {
        name: "h200-32b-tp2",
        what: "Qwen3-32B on H200 x 2",
        gemm_ms: [
            9.909, 10.17, 10.672, 10.965, 11.484, 11.61, 12.37, 14.391, 16.049, 20.983, 26.293, 38.81, 51.47, 74.739,
            100.106, 157.432, 209.156, 321.783, 434.757, 633.075, 833.402,
        ],
        decode: DecodeCost { const_ms: 0.7498, per_seq_ms: 0.003_729, per_kctx_ms: 0.031_031 },
        prefill: PrefillCost { per_chunk_ms: 0.3361, per_ktok_ms: 1.4618, per_mtok2_ms: 1.447_48 },
        kv_tokens: 762_195,
    },
    Profile {
        name: "h200-70b-tp4",
        what: "Llama-3.1-70B on H200 x 4",
        gemm_ms: [
            11.494, 11.857, 11.38, 12.129, 12.792, 13.588, 14.43, 17.788, 19.69, 26.221, 33.117, 49.491, 65.289,
            95.025, 128.323, 195.97, 263.242, 386.969, 520.144, 815.526, 1110.587,
        ],
        decode: DecodeCost { const_ms: 0.9677, per_seq_ms: 0.001_746, per_kctx_ms: 0.019_911 },
        prefill: PrefillCost { per_chunk_ms: 0.3682, per_ktok_ms: 1.251_06, per_mtok2_ms: 0.833_44 },
        kv_tokens: 1_206_695,
    },
    Profile {
        name: "a100-8b",
        what: "Llama-3.1-8B on A100",
        gemm_ms: [
            10.837, 10.679, 10.898, 11.144, 11.202, 12.933, 13.299, 19.157, 19.512, 24.745, 33.158, 47.117, 60.979,
            88.437, 115.894, 173.693, 231.47, 349.809, 468.142, 701.685, 935.228,
        ],
        decode: DecodeCost { const_ms: 0.5484, per_seq_ms: 0.002_033, per_kctx_ms: 0.085_146 },
        prefill: PrefillCost { per_chunk_ms: 0.1838, per_ktok_ms: 1.623_45, per_mtok2_ms: 2.816_74 },
        kv_tokens: 422_259,
    },
    Profile {
        name: "a100-7b",
        what: "Qwen2.5-7B on A100",
        gemm_ms: [
            9.915, 10.398, 11.213, 10.391, 11.285, 12.088, 12.625, 17.164, 18.363, 24.129, 32.125, 44.989, 59.472,
            85.068, 110.663, 162.622, 214.543, 316.615, 418.67, 627.468, 836.265,
        ],
        decode: DecodeCost { const_ms: 0.5102, per_seq_ms: 0.001_22, per_kctx_ms: 0.039_383 },
        prefill: PrefillCost { per_chunk_ms: 0.1488, per_ktok_ms: 1.130_82, per_mtok2_ms: 2.183_18 },
        kv_tokens: 979_638,
    },
    Profile {
        name: "a100-32b-tp2",
        what: "Qwen3-32B on A100 x 2",
        gemm_ms: [
            24.306, 23.213, 24.254, 24.957, 26.13, 29.188, 30.772, 44.528, 46.304, 59.521, 77.451, 124.791, 145.17,
            205.242, 265.595, 399.871, 533.472, 789.609, 1046.435, 1566.929, 2086.558,
        ],
        decode: DecodeCost { const_ms: 1.1663, per_seq_ms: 0.002_79, per_kctx_ms: 0.090_019 },
        prefill: PrefillCost { per_chunk_ms: 0.3663, per_ktok_ms: 3.123_96, per_mtok2_ms: 5.656_81 },
        kv_tokens: 312_472,
    },
    Profile {
        name: "a100-70b-tp4",
        what: "Llama-3.1-70B on A100 x 4",
        gemm_ms: [
            25.73, 27.778, 28.235, 29.699, 30.949, 34.767, 36.004, 47.458, 54.066, 71.365, 102.415, 139.389, 181.038,
            256.632, 332.227, 490.104, 647.977, 960.717, 1273.358, 1898.021, 2522.683,
        ],
        decode: DecodeCost { const_ms: 1.4921, per_seq_ms: 0.000_471, per_kctx_ms: 0.059_608 },
        prefill: PrefillCost { per_chunk_ms: 0.4107, per_ktok_ms: 2.819_28, per_mtok2_ms: 3.4588 },
        kv_tokens: 487_138,
    },
    Profile {
        name: "l40s-8b",
        what: "Llama-3.1-8B on L40S",
        gemm_ms: [
            22.866, 22.133, 23.77, 24.086, 24.435, 25.601, 26.844, 28.839, 30.017, 33.541, 35.651, 51.759, 65.443,
            94.876, 124.275, 191.945, 259.577, 405.909, 551.571, 826.361, 1101.151,
        ],
        decode: DecodeCost { const_ms: 0.211, per_seq_ms: 0.0, per_kctx_ms: 0.089_822 },
        prefill: PrefillCost { per_chunk_ms: 0.2041, per_ktok_ms: 1.442_83, per_mtok2_ms: 1.7719 },
        kv_tokens: 186_339,
    },
    Profile {
        name: "rtxpro6000-8b",
        what: "Llama-3.1-8B on RTX PRO 6000",
        gemm_ms: [
            10.685, 11.537, 11.796, 11.808, 13.67, 14.313, 13.875, 16.047, 19.465, 25.925, 28.059, 40.261, 49.432,
            72.539, 90.451, 126.793, 159.905, 235.864, 316.245, 469.496, 622.68,
        ],
        decode: DecodeCost { const_ms: 0.2953, per_seq_ms: 0.0, per_kctx_ms: 0.052_302 },
        prefill: PrefillCost { per_chunk_ms: 0.1774, per_ktok_ms: 1.414_97, per_mtok2_ms: 1.045_72 },
        kv_tokens: 540_219,
    },
];
