(* Theorems 1 to 3, the family (10) and the second-moment-exact step (13), as laws of random vectors.

   Everything is given some knowledge C: for the forward process, C knows x_0, and mu_s = M_1:s x_0 is then known. *)

From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq fintype bigop.
From mathcomp Require Import order ssralg zmodp ssrnum matrix mxalgebra.
From ssd Require Import matrices moments.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---- Theorems 1 to 3 ---- *)

Section Laws.
Variables (R : realFieldType) (W : comAlgType R) (E : expectation W) (C : conditioning E).

(* The variance of X along v is the mean of a square, so every covariance is symmetric and positive semidefinite. *)
Theorem cov_covariance n (X : 'cV[W]_n) mu (P : 'M[R]_n) : law C X mu P -> covariance P.
Proof.
case=> _ covX; split=> [|v].
  by apply: (cst_inj E); rewrite cst_tr -covX -cov_tr.
pose f : W := (cst W v^T *m centre C X) 0 0.
suff -> : quad P v = E (f * f) by apply: expect_square.
have square : cst W v^T *m centre C X *m (cst W v^T *m centre C X)^T = (f * f)%:M.
  rewrite [cst W v^T *m centre C X]mx11_scalar -/f tr_scalar_mx.
  by rewrite mul_scalar_mx scale_scalar_mx.
have : cov C (cst W v^T *m X) (cst W v^T *m X) = cst W (v^T *m P *m v).
  by rewrite cov_mull cov_mulr covX trmxK !cst_mul mulmxA.
rewrite /cov !centre_mull square => /matrixP /(_ 0 0) /(congr1 E).
by rewrite [mean _ _ _ _]mxE [cst _ _ _ _]mxE expect_given expect_constant mxE eqxx mulr1n.
Qed.

(* Theorem 1. Let x_s have the law (mu_s, S) and x_t = M x_s + eta, eta not correlated with x_s. Then x_t has the law
   (M mu_s, T) if and only if eta has the law (0, T - M S M^T). *)
Theorem forward_transition m n (M : 'M[R]_(m, n)) (x_s : 'cV[W]_n) (eta : 'cV[W]_m) mu_s S T :
  law C x_s mu_s S -> uncorrelated C x_s eta ->
  law C (cst W M *m x_s + eta) (cst W M *m mu_s) T <-> law C eta 0 (transition_cov M S T).
Proof.
move=> law_s noise; have [mean_s cov_s] := law_s; rewrite /transition_cov.
split=> [[mean_t cov_t]|law_eta]; last first.
  by have := law_linear M law_s law_eta noise; rewrite addr0 [_ + (T - _)]addrC subrK.
split.
  by move: mean_t; rewrite meanD mean_mull ?mean_s -1?[RHS]addr0 => [/addrI|]; last exact: cst_known.
move: cov_t; rewrite covDl !covDr !cov_mull !cov_mulr cov_s noise (uncorrelatedC noise).
by rewrite mulmx0 mul0mx addr0 add0r cstB !cst_mul !mulmxA => <-; rewrite addrC addKr.
Qed.

(* Two transitions in a row are the transition of the product, with noise not correlated with the start. *)
Theorem transition_chain l m n (L : 'M[R]_(l, m)) (M : 'M[R]_(m, n)) (x_s : 'cV[W]_n) eta_t eta_u S T U :
  uncorrelated C x_s eta_t -> uncorrelated C x_s eta_u -> uncorrelated C eta_t eta_u ->
  law C eta_t 0 (transition_cov M S T) -> law C eta_u 0 (transition_cov L T U) ->
  let x_t := cst W M *m x_s + eta_t in
  let noise := cst W L *m eta_t + eta_u in
  [/\ cst W L *m x_t + eta_u = cst W (L *m M) *m x_s + noise, uncorrelated C x_s noise
    & law C noise 0 (transition_cov (L *m M) S U)].
Proof.
move=> st su tu law_t law_u /=; split.
- by rewrite mulmxDr cst_mul mulmxA addrA.
- by rewrite /uncorrelated covDr cov_mulr st su mul0mx addr0.
- by have := law_linear L law_t law_u tu; rewrite mulmx0 addr0 chain_cov.
Qed.

(* Theorem 2. For a state (x_s, x_t) with x_t = M x_s + eta as above: *)
Section Posterior.
Variables (m n : nat) (M : 'M[R]_(m, n)) (x_s : 'cV[W]_n) (eta : 'cV[W]_m) (mu_s : 'cV[W]_n).
Variables (S : 'M[R]_n) (T : 'M[R]_m).
Hypothesis law_s : law C x_s mu_s S.
Hypothesis law_noise : law C eta 0 (transition_cov M S T).
Hypothesis noise : uncorrelated C x_s eta.
Hypothesis unitT : T \in unitmx.
Let x_t := cst W M *m x_s + eta.

Definition posterior_mean (x : 'cV[W]_m) : 'cV[W]_n := mu_s + cst W (gain M S T) *m (x - cst W M *m mu_s).

Fact law_t : law C x_t (cst W M *m mu_s) T.
Proof. by apply/(forward_transition M T law_s noise). Qed.

Fact cov_st : cov C x_s x_t = cst W (S *m M^T).
Proof. by rewrite covDr cov_mulr law_s.2 noise addr0 -cst_mul. Qed.

Fact covS : covariance S. Proof. exact: cov_covariance law_s. Qed.
Fact covT : covariance T. Proof. exact: cov_covariance law_t. Qed.

(* The error of the linear estimator with gain K. *)
Definition estimation_error (K : 'M[R]_(n, m)) : 'cV[W]_n := x_s - (mu_s + cst W K *m (x_t - cst W M *m mu_s)).

Lemma cov_error p K (Y : 'cV[W]_p) : cov C (estimation_error K) Y = cov C x_s Y - cst W K *m cov C x_t Y.
Proof.
have known_s : known C mu_s := law_mean_known law_s.
have known_t : known C (cst W M *m mu_s) := known_cst_mul M known_s.
by rewrite covBl covDl cov_mull covBl (cov_knownl _ known_s) (cov_knownl _ known_t) add0r subr0.
Qed.

(* No other estimator's error is uncorrelated with x_t ... *)
Theorem error_uncorrelated K : uncorrelated C (estimation_error K) x_t <-> K = gain M S T.
Proof.
rewrite /uncorrelated cov_error cov_st law_t.2 -cst_mul -cstB -[X in _ = X](cst0 W); split=> [|->].
  by move/(cst_inj E)/eqP; rewrite subr_eq0 /gain => /eqP ->; rewrite mulmxK.
by rewrite /gain mulmxKV // subrr.
Qed.

(* ... and none errs less: the gain of (6) leaves (6)'s covariance, any other leaves more. *)
Theorem error_law K : let excess := K - gain M S T in
  law C (estimation_error K) 0 (posterior_cov M S T + excess *m T *m excess^T).
Proof.
have [[mean_s cov_s] [mean_t cov_t]] := (law_s, law_t); split.
  rewrite meanB meanD mean_mull ?meanB; last exact: cst_known.
  have -> : mean C mu_s = mu_s := law_mean_known law_s.
  have -> : mean C (cst W M *m mu_s) = cst W M *m mu_s := known_cst_mul M (law_mean_known law_s).
  by rewrite mean_s mean_t subrr mulmx0 addr0 subrr.
have symS : S^T = S by case: covS.
have symT : T^T = T by case: covT.
have KT : gain M S T *m T = S *m M^T by rewrite /gain mulmxKV.
have TK : T *m (gain M S T)^T = M *m S by rewrite -{1}symT -trmx_mul KT trmx_mul trmxK symS.
have cov_ts : cov C x_t x_s = cst W (M *m S) by rewrite cov_tr cov_st -cst_tr trmx_mul trmxK symS.
rewrite cov_error [cov C x_s _]cov_tr [cov C x_t _]cov_tr !cov_error cov_s cov_st cov_ts cov_t.
rewrite -!cst_mul -!cstB -!cst_tr -!cst_mul -cstB /posterior_cov -(error_cov_square K KT TK).
rewrite [(S - _)^T]linearB [(_ - K *m T)^T]linearB /=.
by rewrite !trmx_mul symS symT trmxK.
Qed.

Corollary error_least K P : law C (estimation_error K) 0 P -> psd (P - posterior_cov M S T).
Proof.
case=> _; rewrite (error_law K).2 => /(cst_inj E) <-.
by rewrite addrC addKr; apply: psd_congr; case: covT.
Qed.

(* The law given x_t too. D knows what C knows and x_t; the error is uncorrelated with x_t, so for Gaussian vectors it
   is independent of x_t, and D expects of it what C does: these are the hypotheses on the error. *)
Theorem posterior (D : conditioning E) : coarser C D -> known D x_t ->
  let error := estimation_error (gain M S T) in
  mean D error = mean C error -> cov D error error = cov C error error ->
  law D x_s (posterior_mean x_t) (posterior_cov M S T).
Proof.
move=> CD known_t error same_mean same_cov.
have known_s : known D mu_s := known_finer CD (law_mean_known law_s).
have known_mean : known D (posterior_mean x_t).
  apply: knownD => //; apply: known_cst_mul; apply: knownB => //; exact: known_cst_mul.
have law_error : law D error 0 (posterior_cov M S T).
  have := error_law (gain M S T); rewrite /= subrr !mul0mx addr0 => - [mean0 cov0].
  by split; rewrite ?same_mean ?same_cov.
by have := law_shift known_mean law_error; rewrite addr0 addrC subrK.
Qed.

(* (5) as it is usually written. *)
Theorem posterior_mean_forms_agree x :
  transition_cov M S T \in unitmx -> S \in unitmx ->
  cst W (posterior_cov_by_precision M S (transition_cov M S T))
    *m (cst W (invmx S) *m mu_s + cst W (M^T *m invmx (transition_cov M S T)) *m x) = posterior_mean x.
Proof.
move=> unitQ unitS; rewrite posterior_cov_forms_agree // mulmxDr !mulmxA -!cst_mul.
rewrite mulmxA gain_by_precision // /posterior_cov mulmxBl mulmxV // mulmxK // cstB cst1.
by rewrite mulmxBl mul1mx /posterior_mean mulmxBr cst_mul -mulmxA addrAC addrA.
Qed.

End Posterior.
(* Theorem 3, (7): the posterior between isotropic marginals. *)
Theorem isotropic_posterior (D : conditioning E) m n (M : 'M[R]_(m, n)) (x_s : 'cV[W]_n) eta mu_s (a b : R) :
  let rho := a / b in
  let x_t := cst W M *m x_s + eta in
  let mu := mu_s + cst W (rho *: M^T) *m (x_t - cst W M *m mu_s) in
  let error := x_s - mu in
  b != 0 -> law C x_s mu_s a%:M -> law C eta 0 (transition_cov M a%:M b%:M) -> uncorrelated C x_s eta ->
  coarser C D -> known D x_t -> mean D error = mean C error -> cov D error error = cov C error error ->
  law D x_s mu (a *: (1%:M - rho *: (M^T *m M))).
Proof.
move=> rho x_t mu error b_neq0 law_s law_eta noise CD known_t; rewrite /error /mu /x_t /rho.
rewrite -isotropic_posterior_cov -isotropic_gain.
by apply: (posterior law_s law_eta noise) => //; rewrite unitmxE det_scalar unitfE expf_neq0.
Qed.

(* ---- (10): every gain B keeps the marginals ---- *)

(* The noise eps has the covariance of (10) exactly if the step carries the marginal at t to the marginal at s. *)
Theorem same_marginal_family m n (M : 'M[R]_(m, n)) (B : 'M[R]_(n, m)) (x_t : 'cV[W]_m) eps mu_s S T :
  known C mu_s -> law C x_t (cst W M *m mu_s) T -> uncorrelated C x_t eps ->
  law C (mu_s + (cst W B *m (x_t - cst W M *m mu_s) + eps)) mu_s S <-> law C eps 0 (family_cov B S T).
Proof.
move=> known_s law_t noise; set y := x_t - _.
have known_t := known_cst_mul M known_s.
have law_y : law C y 0 T.
  have := law_shift (_ : known C (- (cst W M *m mu_s))) law_t; rewrite addNr addrC; apply.
  by rewrite /known meanN known_t.
have noise_y : uncorrelated C y eps by rewrite /uncorrelated covBl noise (cov_knownl _ known_t) subr0.
have step := forward_transition B S law_y noise_y; rewrite mulmx0 in step.
split=> [law_s|/step law_step]; last by have := law_shift known_s law_step; rewrite addr0.
apply/step; have := law_shift (_ : known C (- mu_s)) law_s; rewrite addNr addKr; apply.
by rewrite /known meanN known_s.
Qed.

End Laws.

(* ---- (13): the reverse step with the mean and the covariance of the true one ----

   nothing <= Ct <= C0t: Ct knows x_t (what the sampler knows), C0t knows x_t and x_0. The network's best prediction is
   x_hat = mean Ct x_0, and C_t = cov Ct x_0 x_0 is what it cannot know; both depend on x_t. *)

Section SecondMoments.
Variables (R : realFieldType) (W : comAlgType R) (E : expectation W).
Variables (Ct C0t : conditioning E).
Hypothesis Ct_C0t : coarser Ct C0t.
Variables (p m n : nat).
(* A_s = a_s R_s and A_t = a_t R_t take the clean signal to its mean at s and at t. *)
Variables (A_s : 'M[R]_(n, p)) (A_t : 'M[R]_(m, p)) (B : 'M[R]_(n, m)) (Sigma : 'M[R]_n).
Variables (x_0 : 'cV[W]_p) (x_t : 'cV[W]_m) (x_s : 'cV[W]_n).
Hypothesis known_t : known Ct x_t.
Hypothesis known_0 : known C0t x_0.

Definition step_mean (x : 'cV[W]_p) : 'cV[W]_n := cst W A_s *m x + cst W B *m (x_t - cst W A_t *m x).

(* The reverse step (10): what x_s is, given x_t and x_0. Its member B = rho M^T is the true process's (theorem 3). *)
Hypothesis step : law C0t x_s (step_mean x_0) Sigma.

Let D := A_s - B *m A_t.
Let x_hat := mean Ct x_0.
Let C_t := cov Ct x_0 x_0.

Lemma step_meanE x : step_mean x = cst W D *m x + cst W B *m x_t.
Proof. by rewrite /step_mean /D mulmxBr mulmxA cstB mulmxBl cst_mul addrA addrAC. Qed.

(* The covariance of x_s given x_t: the step's own noise, and what is not known of x_0, carried by D. *)
Definition step_cov : 'M[W]_n := cst W Sigma + cst W D *m C_t *m cst W D^T.

(* Mean and covariance of the true reverse step, for any data. *)
Theorem reverse_step : mean Ct x_s = step_mean x_hat /\ cov Ct x_s x_s = step_cov.
Proof.
have known_Bt : known Ct (cst W B *m x_t) := known_cst_mul B known_t.
case: step => mean_s cov_s; split.
  rewrite -(mean_mean Ct_C0t) mean_s !step_meanE meanD known_Bt mean_mull //; exact: cst_known.
rewrite (total_covariance Ct_C0t) mean_s cov_s cst_known step_meanE; congr (_ + _).
rewrite covDl (cov_knownl _ known_Bt) addr0 covDr (cov_knownr _ known_Bt) addr0.
by rewrite cov_mull cov_mulr mulmxA.
Qed.

(* A sampler's step from x_hat, with noise zeta drawn with the covariance of (13), has them too ... *)
Variable zeta : 'cV[W]_n.
Hypothesis zeta_mean : mean Ct zeta = 0.
Let y := step_mean x_hat + zeta.

Fact known_step : known Ct (step_mean x_hat).
Proof. by rewrite step_meanE; apply: knownD; apply: known_cst_mul => //; apply: mean_known. Qed.

Fact sampled_mean : mean Ct y = mean Ct x_s.
Proof. by rewrite meanD zeta_mean addr0 known_step reverse_step.1. Qed.

Fact sampled_cov : cov Ct y y = cov Ct zeta zeta.
Proof. by rewrite /y covDl (cov_knownl _ known_step) add0r covDr (cov_knownr _ known_step) add0r. Qed.

Theorem exact_step : cov Ct zeta zeta = step_cov -> mean Ct y = mean Ct x_s /\ cov Ct y y = cov Ct x_s x_s.
Proof. by move=> covE; rewrite sampled_mean sampled_cov reverse_step.2. Qed.

(* ... and averaged over x_t the marginal mean and covariance at s are right, even if the noise has only the right
   covariance on average (one C_t for all x_t, as measured). *)
Theorem exact_marginal : mean (nothing E) (cov Ct zeta zeta) = mean (nothing E) step_cov ->
  mean (nothing E) y = mean (nothing E) x_s /\ cov (nothing E) y y = cov (nothing E) x_s x_s.
Proof.
move=> average; have below := nothing_coarser Ct; split.
  by rewrite -(mean_mean below) sampled_mean mean_mean.
rewrite (total_covariance below y) (total_covariance below x_s) sampled_mean sampled_cov.
by rewrite average reverse_step.2.
Qed.

(* Without the correction, zeta of covariance Sigma, the step lacks E[D C_t D^T]. *)
Theorem plain_step_lacks : cov Ct zeta zeta = cst W Sigma ->
  cov (nothing E) x_s x_s - cov (nothing E) y y = cst W D *m mean (nothing E) C_t *m cst W D^T.
Proof.
move=> plain; have below := nothing_coarser Ct.
rewrite (total_covariance below y) (total_covariance below x_s) sampled_mean sampled_cov plain.
rewrite reverse_step.2 /step_cov meanD opprD addrACA subrr addr0 addrAC subrr add0r.
by rewrite mean_mulr ?mean_mull //; apply: cst_known.
Qed.

End SecondMoments.

(* The marginal at s that these steps keep is the one of (2), averaged over the data: with x_t = A_t x_0 + eta. *)
Section Marginal.
Variables (R : realFieldType) (W : comAlgType R) (E : expectation W) (C0t : conditioning E).
Variables (p m n : nat) (A_s : 'M[R]_(n, p)) (A_t : 'M[R]_(m, p)) (B : 'M[R]_(n, m)).
Variables (x_0 : 'cV[W]_p) (eta : 'cV[W]_m) (x_s : 'cV[W]_n) (mu : 'cV[W]_p) (P : 'M[R]_p) (S : 'M[R]_n) (T : 'M[R]_m).
Let x_t := cst W A_t *m x_0 + eta.

Theorem marginal_kept : let none := nothing E in
  law none x_0 mu P -> law none eta 0 T -> uncorrelated none x_0 eta ->
  known C0t x_0 -> known C0t x_t ->
  law C0t x_s (step_mean A_s A_t B x_t x_0) (S - B *m T *m B^T) ->
  law none x_s (cst W A_s *m mu) (A_s *m P *m A_s^T + S).
Proof.
move=> none law_0 law_eta noise known_0 known_t [mean_s cov_s]; have below := nothing_coarser C0t.
have inner : step_mean A_s A_t B x_t x_0 = cst W A_s *m x_0 + cst W B *m eta.
  by rewrite /step_mean /x_t [_ + eta]addrC addrK.
have [mean_inner cov_inner] : law none (cst W A_s *m x_0 + cst W B *m eta) (cst W A_s *m mu)
    (A_s *m P *m A_s^T + B *m T *m B^T).
  rewrite -[cst W A_s *m mu]addr0; apply: law_linear => //.
    split; first by rewrite mean_mull ?law_eta.1 ?mulmx0 //; apply: cst_known.
    by rewrite cov_mull cov_mulr law_eta.2 !cst_mul mulmxA.
  by rewrite /uncorrelated cov_mulr noise mul0mx.
split; first by rewrite -(mean_mean below) mean_s inner.
rewrite (total_covariance below) mean_s cov_s inner cov_inner cst_known -cstD; congr (cst W _).
by rewrite addrC -addrA [B *m T *m B^T + _]addrC subrK.
Qed.
End Marginal.
